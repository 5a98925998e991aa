"""Archive files, which ``pmwal archive`` writes: records in Parquet or in compressed JSON lines, and how they are read."""
