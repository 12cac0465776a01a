// Command cmd plays every attack of bench/attack at full speed on gateways of the program that -gateway names,
// beside a probe, and prints a table; -o keeps it as a document. `make attack` runs it.
package main
