"""Parameter trees and tokenizers in and out of other formats."""
