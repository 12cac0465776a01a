// Package proc starts the processes that are measured, and reads in /proc what machine this is and what processes use
// and hold. Where there is no /proc, texts are empty and numbers an error.
package proc
