package extauthz

import (
	"fmt"
	"os"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// TestMain fails when tests have left goroutines behind, ours or those of gRPC.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 && !goroutinesEnd() {
		code = 1
	}
	os.Exit(code)
}

// goroutinesEnd waits until nothing runs any more but this.
func goroutinesEnd() bool {
	var stacks strings.Builder
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		stacks.Reset()
		_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
		if text := stacks.String(); !strings.Contains(text, "google.golang.org/grpc") && strings.Count(text, "culvert/policy/extauthz.") == 2 {
			return true // TestMain and this function
		}
	}
	fmt.Fprintf(os.Stderr, "tests left goroutines behind:\n%s", &stacks)
	return false
}
