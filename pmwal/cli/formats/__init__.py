"""The forms in which commands read and write records: text, JSON, hex dumps, length-prefixed items, Parquet, Arrow."""
