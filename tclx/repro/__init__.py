"""Tables that can be made again: a file names runs and metrics; the numbers come from run folders and are kept beside it.

| module | says |
|---|---|
| `table` | which specs a table's file asks for |
| `record` | what was measured, and of which specs: a JSON file beside the table's |
| `made` | the table from run folders, and from the record where they are gone; what is out of date |
| `document` | the table within a Markdown file |
"""
