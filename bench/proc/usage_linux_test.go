package proc

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestUsageCountsChildren has a process whose child does the work.
func TestUsageCountsChildren(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	p, err := Start(t.TempDir(), "parent", "sh", "-c", "while :; do :; done & wait")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	for begin := time.Now(); ; time.Sleep(Poll) {
		u, err := p.Usage()
		if err != nil {
			t.Fatal(err)
		}
		own, err := readStat(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		if u.CPU >= own.cpu+50*time.Millisecond {
			if u.ResidentBytes < 100<<10 {
				t.Errorf("two shells hold %d bytes, want more", u.ResidentBytes)
			}
			return
		}
		if time.Since(begin) > StartPatience {
			t.Fatalf("usage = %v, %v of it the parent's, want more of the child", u.CPU, own.cpu)
		}
	}
}

// TestStatIsTheKernels compares what is read from /proc with getrusage.
func TestStatIsTheKernels(t *testing.T) {
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; { // something to count
	}
	if err := exec.Command("true").Run(); err != nil {
		t.Fatal(err)
	}
	st, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var ru syscall.Rusage
		if err := syscall.Getrusage(who, &ru); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	// Four clocks are rounded down to ticks, and time passes between the readings.
	if st.cpu > sum || sum-st.cpu > 4*clockTick+time.Second {
		t.Errorf("/proc says %v, getrusage %v", st.cpu, sum)
	}
	if st.parent != os.Getppid() {
		t.Errorf("parent = %d, want %d", st.parent, os.Getppid())
	}
}
