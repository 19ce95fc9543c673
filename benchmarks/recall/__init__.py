"""Does a search find the right memory? Questions with known answers, asked through the public interface."""
