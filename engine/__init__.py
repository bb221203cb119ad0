"""How a picture is made: scales and start, guides and maps, colours, optimisers."""
