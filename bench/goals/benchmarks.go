package goals

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// inLog finds a figure that a test has logged.
var inLog = regexp.MustCompile(`^\s+\S+_test\.go:\d+: ([0-9.]+) (\D+)$`) // it is never changed

// Benchmarks are the figures of Go benchmarks, and of tests that log some: by name, a space and the unit, one for each run.
type Benchmarks map[string][]float64

// Run runs go test with args, from the root of the project, and takes what it says.
func (b Benchmarks) Run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-vet=off"}, args...)...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go test %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	b.Read(string(text))
	return nil
}

// Read takes those in the output of go test.
func (b Benchmarks) Read(text string) {
	test := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if name, ok := strings.CutPrefix(line, "=== RUN   "); ok {
			test = name
			continue
		}
		if m := inLog.FindStringSubmatch(line); m != nil {
			if value, err := strconv.ParseFloat(m[1], 64); err == nil {
				b[test+" "+m[2]] = append(b[test+" "+m[2]], value)
			}
			continue
		}
		words := strings.Fields(line)
		if len(words) < 4 || !strings.HasPrefix(words[0], "Benchmark") {
			continue
		}
		name := words[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i]
		}
		for i := 2; i+1 < len(words); i += 2 {
			if value, err := strconv.ParseFloat(words[i], 64); err == nil {
				b[name+" "+words[i+1]] = append(b[name+" "+words[i+1]], value)
			}
		}
	}
}

// Median is the middle of the runs of what key names, of an even number the higher one; an error if there are none.
func (b Benchmarks) Median(key string) (float64, error) {
	list := slices.Sorted(slices.Values(b[key]))
	if len(list) == 0 {
		return 0, fmt.Errorf("no figure %q", key)
	}
	return list[len(list)/2], nil
}
