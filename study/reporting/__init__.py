"""Reports on a study: tables, the live table, the HTML page and its charts."""
