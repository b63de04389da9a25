"""Names to rows: files, folders, generated data and the Hub; what columns mean is not known here."""
