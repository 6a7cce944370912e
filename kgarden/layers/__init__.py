"""Plain layers, with no view on recipes or data sets."""
