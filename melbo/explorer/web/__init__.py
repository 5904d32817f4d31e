"""Pages of the explorer: layout only, on NiceGUI (the extra ``explore``)."""
