"""How a study is doing: tables, the live table, the HTML page and its charts."""
