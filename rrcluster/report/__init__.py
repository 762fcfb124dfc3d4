"""What people look at: the HTML page, the terminal tables, the scores. Reads only a run folder."""
