package proc

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Processor names the processor of this machine.
func Processor() string { return field("/proc/cpuinfo", "model name") }

// Line is the first line of a file, "" if there is none.
func Line(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// MemoryBytes is what this machine has.
func MemoryBytes() (int64, error) { return size("/proc/meminfo", "MemTotal") }

// ResidentBytes is the resident memory of a process. Its smaps_rollup is counted anew with every reading; statm lags
// behind.
func ResidentBytes(pid int) (int64, error) {
	return size(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Rss")
}

// size is a field that is given in kB, in bytes.
func size(file, name string) (int64, error) {
	kilobytes, err := strconv.ParseInt(strings.TrimSuffix(field(file, name), " kB"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s of %s: %w", name, file, err)
	}
	return kilobytes << 10, nil
}

// field is what stands behind "name:" in a file, "" if nothing.
func field(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, found := strings.Cut(lines.Text(), ":")
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
