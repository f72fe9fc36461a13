"""A server: pictures and questions come by HTTP, answers go as polygons."""
