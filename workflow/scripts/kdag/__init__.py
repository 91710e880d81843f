"""kdag: the library that the stages of the workflow share."""
