// Package goals makes the tables that measurements end with: figures, and those of them that are to reach something.
package goals
