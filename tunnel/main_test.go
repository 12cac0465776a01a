package tunnel_test

import (
	"fmt"
	"os"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// TestMain fails when tests have left goroutines behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 && !goroutinesEnd() {
		code = 1
	}
	os.Exit(code)
}

// goroutinesEnd waits until nothing of ours runs any more.
func goroutinesEnd() bool {
	var stacks strings.Builder
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		stacks.Reset()
		_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
		// The one that is here names this function.
		if strings.Count(stacks.String(), "culvert/") == strings.Count(stacks.String(), "culvert/tunnel_test.goroutinesEnd")+strings.Count(stacks.String(), "culvert/tunnel_test.TestMain") {
			return true
		}
	}
	fmt.Fprintf(os.Stderr, "tests left goroutines behind:\n%s", &stacks)
	return false
}
