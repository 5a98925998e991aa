"""What a crash left: facts, the search for evidence, the verdict, and what can be salvaged. It never writes."""
