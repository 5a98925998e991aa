"""What a crash left: facts, the search for evidence, the verdict, and salvage. It never writes."""
