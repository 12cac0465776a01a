package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// whileStdin is the value of asGateway for gateways that end, with all that take their place, when the tests do;
// see TestMain.
const whileStdin = "while stdin"

// lineage is a gateway and those that have taken its place.
type lineage struct {
	*gateway              // its process is the first one
	log      string       // of all of them
	pids     []int        // the first one is first; the last one serves
	turns    []changeover // one for each but the last
}

// changeover is when a process was told to leave its place, and when it had.
type changeover struct{ told, left time.Time }

// lineage starts the first gateway. program is what it is started from, "" for the tests themselves.
func (m *mesh) lineage(t *testing.T, name, program string, env []string, flag ...string) *lineage {
	t.Helper()
	g, cmd := m.command(t, name, flag...)
	if program != "" {
		cmd.Path, cmd.Args[0] = program, program
	}
	cmd.Env = append(append(cmd.Env, asGateway+"="+whileStdin), env...)
	l := &lineage{gateway: g, log: filepath.Join(t.TempDir(), "log")}
	out, err := os.Create(l.log)
	if err != nil {
		t.Fatal(err)
	}
	life, alive, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = life
	t.Cleanup(func() {
		_ = alive.Close() // ends them all
		for _, pid := range l.pids {
			within(t, "end of the gateways", func() error { return ended(pid) })
		}
		_ = errors.Join(out.Close(), life.Close())
		text := l.text(t)
		for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "BUG: "} {
			if i := strings.Index(text, bad); i >= 0 {
				t.Errorf("%s: %s", name, text[i:min(len(text), i+shownBytes)])
			}
		}
		if t.Failed() {
			t.Logf("%s\n…%s", name, text[max(0, len(text)-shownBytes):])
		}
	})
	l.process = startInto(t, cmd, out)
	l.pids = []int{cmd.Process.Pid}
	l.ready(t)
	return l
}

// startInto is start with the output in a file: whoever takes the place of the process has it too.
func startInto(t *testing.T, cmd *exec.Cmd, out *os.File) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		_ = f.Close() // the process has its own
	}
	go func() { // ends with the process, which the cleanup ends and waits for
		_ = cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// ended returns an error while there is a process pid that has not ended.
func ended(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	if i := bytes.LastIndexByte(stat, ')'); i >= 0 && bytes.HasPrefix(stat[i:], []byte(") Z")) {
		return nil // its parent has only not been told
	}
	return fmt.Errorf("process %d runs", pid)
}

func (l *lineage) text(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(l.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// logs waits for a line that pattern matches, the nth of them from 1, and returns its submatches.
func (l *lineage) logs(t *testing.T, n int, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var found [][]string
	within(t, "log "+pattern, func() error {
		if found = re.FindAllStringSubmatch(l.text(t), n); len(found) < n {
			return fmt.Errorf("%d lines, want %d", len(found), n)
		}
		return nil
	})
	return found[n-1]
}

// serving is the process that serves.
func (l *lineage) serving() int { return l.pids[len(l.pids)-1] }

func (l *lineage) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(l.serving(), s); err != nil {
		t.Fatal(err)
	}
}

func (l *lineage) ready(t *testing.T) {
	t.Helper()
	within(t, "ready", func() error {
		_, err := l.get("/readyz")
		return err
	})
}

// restart puts a new process in the place of the one that serves.
func (l *lineage) restart(t *testing.T) {
	t.Helper()
	told := time.Now()
	l.signal(t, syscall.SIGUSR2)
	m := l.logs(t, len(l.pids), `msg="restarted: the new process serves" pid=(\d+)`)
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	l.pids = append(l.pids, pid)
	l.turns = append(l.turns, changeover{told, time.Now()})
}

// keeps sends SIGUSR2 to a gateway that must not leave its place, for the given reason.
func (l *lineage) keeps(t *testing.T, reason string) {
	t.Helper()
	l.signal(t, syscall.SIGUSR2)
	l.logs(t, 1, `msg="not restarted: this process goes on" err=".*`+reason)
	l.ready(t)
	if err := ended(l.serving()); err == nil {
		t.Error("the process has ended")
	}
}

// install puts a program at path in one step, as an upgrade does.
func install(t *testing.T, path, text string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// version returns a script that says its number and becomes the gateway, which it is called like.
func version(t *testing.T, number int) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("#!/bin/bash\necho version %d >&2\nexec -a \"$0\" %s \"$@\"\n", number, self)
}

// TestRestartRunsWhatIsInstalled upgrades the program in place: a flow of before lives on in the old process until
// its end, and the new one serves what comes.
func TestRestartRunsWhatIsInstalled(t *testing.T) {
	m := newMesh(t)
	dir := t.TempDir()
	path, real := filepath.Join(dir, "gateway"), filepath.Join(dir, "gateway-1")
	install(t, real, version(t, 1))
	if err := os.Symlink(real, path); err != nil {
		t.Fatal(err)
	}
	l := m.lineage(t, "client", path, nil, "--forward", "$ADDR="+serve(t, echo))
	old := dial(t, l.addr)
	echoes(t, old, "before")
	install(t, path, version(t, 2))
	l.restart(t)
	l.logs(t, 1, `version 2\n`)
	echoes(t, old, "still there")
	roundTrip(t, l.addr)
	l.ready(t)
	if err := old.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	within(t, "end of the old process", func() error { return ended(l.pids[0]) })
	<-l.done
	if code := l.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code of the old process = %d, want 0", code)
	}
	roundTrip(t, l.addr)
}

// TestRestartThatFails shows that the gateway goes on when what takes its place cannot.
func TestRestartThatFails(t *testing.T) {
	m := newMesh(t)
	path := filepath.Join(t.TempDir(), "gateway")
	install(t, path, version(t, 1))
	l := m.lineage(t, "client", path, nil, "--forward", "$ADDR="+serve(t, echo))
	flow := dial(t, l.addr)
	for _, tt := range []struct{ program, reason string }{
		{"#!/bin/sh\nexit 7\n", `exit status 7`},
		{"#!/bin/sh\nexec sleep 60 3>&- 4>&- 5>&- 6>&-\n", `signal: terminated`},
		{"#!/bin/sh\necho WRONG >&5\n", `the new process says .*WRONG`},
		{"no program", `exec format error`},
	} {
		install(t, path, tt.program)
		l.keeps(t, tt.reason)
		echoes(t, flow, "still there")
		roundTrip(t, l.addr)
	}
	if err := os.Rename(m.path("client.key"), m.path("away")); err != nil {
		t.Fatal(err)
	}
	install(t, path, version(t, 2))
	l.keeps(t, `exit status 2`)
	l.logs(t, 1, `client.key`)
	roundTrip(t, l.addr)
	if err := os.Rename(m.path("away"), m.path("client.key")); err != nil {
		t.Fatal(err)
	}
	l.restart(t)
	roundTrip(t, l.addr)
}

// TestRestartThenStop shows what signals do to a process that has left its place: a service manager that stops the
// service tells all of its processes, and the flows of the old one have their time all the same.
func TestRestartThenStop(t *testing.T) {
	m := newMesh(t)
	l := m.lineage(t, "client", "", nil, "--forward", "$ADDR="+serve(t, echo))
	flow := dial(t, l.addr)
	echoes(t, flow, "before")
	l.restart(t)
	if err := syscall.Kill(l.pids[0], syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.signal(t, syscall.SIGTERM)
	within(t, "end of the new process", func() error { return ended(l.serving()) })
	l.logs(t, 1, `msg="the new process has ended`)
	echoes(t, flow, "still there")
	if err := syscall.Kill(l.pids[0], syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-l.done
	if code := l.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code after a second signal = %d, want 1", code)
	}
}

// TestRestartTellsTheServiceManager shows that the service manager hears which process is the main one, from the one
// it knows, and that the new one takes up the watchdog.
func TestRestartTellsTheServiceManager(t *testing.T) {
	m := newMesh(t)
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err2 := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1) }); errors.Join(err, err2) != nil {
		t.Fatal(err, err2)
	}
	// hears returns who has sent the next message that is no sign of life, or with one, a sign of life of pid.
	hears := func(alive int) (text string, pid int) {
		t.Helper()
		for {
			_ = socket.SetReadDeadline(time.Now().Add(patience))
			buf, control := make([]byte, 256), make([]byte, 256)
			n, nc, _, _, err := socket.ReadMsgUnix(buf, control)
			if err != nil {
				t.Fatal(err)
			}
			list, err := syscall.ParseSocketControlMessage(control[:nc])
			if err != nil || len(list) != 1 {
				t.Fatalf("credentials: %v, %v", list, err)
			}
			cred, err := syscall.ParseUnixCredentials(&list[0])
			if err != nil {
				t.Fatal(err)
			}
			if text = string(buf[:n]); text != "WATCHDOG=1" || alive == int(cred.Pid) {
				return text, int(cred.Pid)
			}
		}
	}
	wants := func(from int, want string) {
		t.Helper()
		if text, pid := hears(0); pid != from || !strings.HasPrefix(text, want) {
			t.Fatalf("%q from %d, want %q from %d", text, pid, want, from)
		}
	}
	l := m.lineage(t, "client", "", []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=20000"}, "--forward", "$ADDR="+serve(t, echo))
	wants(l.pids[0], "READY=1")
	l.restart(t)
	wants(l.pids[0], "RELOADING=1\nMONOTONIC_USEC=")
	wants(l.pids[0], fmt.Sprintf("MAINPID=%d\nREADY=1", l.serving()))
	if text, pid := hears(l.serving()); pid != l.serving() || text != "WATCHDOG=1" {
		t.Fatalf("%q from %d, want a sign of life of the new process", text, pid)
	}
	within(t, "end of the old process", func() error { return ended(l.pids[0]) })
	l.signal(t, syscall.SIGHUP)
	wants(l.serving(), "RELOADING=1")
	wants(l.serving(), "READY=1")
	l.signal(t, syscall.SIGTERM)
	wants(l.serving(), "STOPPING=1")
}
