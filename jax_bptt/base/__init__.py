"""Floor 1: types, errors, checks, trees and caching, for every other room."""
