"""The laboratory round the paper: it trains, records, resumes, compares, draws and parses the command line."""
