// Package proc reads in /proc what machine this is and what processes hold. Where there is no /proc, texts are empty
// and numbers an error.
package proc
