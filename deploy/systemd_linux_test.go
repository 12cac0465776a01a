package deploy

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const unitProgram = "/usr/local/bin/gateway"

// unitFile is a unit with its drop-ins: the values of a key, of all sections.
type unitFile map[string][]string

// readUnit reads files as systemd merges them: an empty value takes back what was before.
func readUnit(t *testing.T, files ...string) unitFile {
	t.Helper()
	u := unitFile{}
	for _, file := range files {
		for line := range strings.Lines(read(t, file)) {
			key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
			switch {
			case !ok || strings.HasPrefix(key, "#"):
			case value == "":
				u[key] = nil
			default:
				u[key] = append(u[key], value)
			}
		}
	}
	return u
}

// units copies the units to a folder where systemd-analyze finds them, with the program that was built, and returns their
// names. The drop-in for credentials is that of the instance "credentials".
func units(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	for _, file := range find(t, ".service", ".socket", ".conf") {
		name := strings.TrimPrefix(file, "systemd/")
		if strings.HasPrefix(name, "dropins/") {
			name = strings.Replace(name, "dropins/", "culvert@credentials.service.d/", 1)
		} else if !strings.HasSuffix(name, ".conf") && name != "culvert@.service" {
			names = append(names, name)
		}
		write(t, filepath.Join(dir, name), strings.ReplaceAll(read(t, file), unitProgram, built(t)), 0o644)
	}
	t.Setenv("SYSTEMD_UNIT_PATH", dir+":") // and where systemd looks besides
	return dir, append(names, "culvert@egress.service", "culvert@uproxy.service", "culvert@credentials.service")
}

func TestForeignUnitsAreRight(t *testing.T) {
	_, names := units(t)
	for _, name := range names { // each of its own, so that the fault has a name
		if out, err := try(t, program(t, "systemd-analyze"), "verify", "--man=no", name); err != nil || out != "" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if !strings.HasSuffix(name, ".service") {
			continue
		}
		limit := "20" // tenths; what `systemd-analyze security` calls OK ends at 44
		if name == "culvert-capture.service" {
			limit = "25" // it runs as root
		}
		if out, err := try(t, program(t, "systemd-analyze"), "security", "--offline=yes", "--no-pager", "--threshold="+limit, name); err != nil {
			t.Errorf("%s is exposed more than %s: %v\n%s", name, limit, err, out)
		}
	}
}

// Every command of the units is one that the program has.
func TestUnitsStartWhatThereIs(t *testing.T) {
	for _, file := range find(t, ".service", ".conf") {
		u := readUnit(t, file)
		for _, key := range []string{"ExecStart", "ExecStop"} {
			for _, line := range u[key] {
				words := strings.Fields(line)
				if words[0] != unitProgram {
					t.Errorf("%s: %s starts none of ours", file, line)
				} else if out, err := try(t, built(t), append(words[1:], "--help")...); err != nil {
					t.Errorf("%s: %v\n%s", file, err, out)
				}
			}
		}
	}
}

// A unit by hand: the sockets of its socket unit are opened by root, and its command gets them, with no other capability than the
// unit gives, no way to new ones, and a user that is not root, in a network of its own. It has to tell that it is ready, to want
// every socket, and to end well.
func TestNetnsUnitsStart(t *testing.T) {
	needRoot(t)
	started := 0
	for _, socket := range append(find(t, ".socket"), "systemd/culvert@uproxy.socket") { // which is not there
		role := strings.TrimSuffix(strings.TrimPrefix(socket, "systemd/culvert@"), ".socket")
		t.Run(role, func(t *testing.T) {
			example, err := os.ReadFile(filepath.Join("examples", role+".yaml"))
			if err != nil {
				t.Fatalf("no example of the unit's name: %v", err)
			}
			playManager(t, role, socket, string(example))
			started++
		})
	}
	if started < 8 {
		t.Errorf("%d units were started", started)
	}
}

// playManager starts and ends culvert@ROLE as the service manager does.
func playManager(t *testing.T, role, socket, example string) {
	files := []string{"systemd/culvert@.service"}
	if drops, err := filepath.Glob("systemd/culvert@" + role + ".service.d/*.conf"); err == nil {
		files = append(files, drops...)
	}
	u := readUnit(t, files...)
	var addresses []string
	if strings.Contains(strings.Join(find(t, ".socket"), " "), socket) {
		addresses = readUnit(t, socket)["ListenStream"]
	}
	dir := etcCulvert(t)
	write(t, filepath.Join(dir, role+".yaml"), strings.ReplaceAll(example, "/etc/culvert/", dir+"/"), 0o644)
	command := strings.NewReplacer(unitProgram, built(t), "/etc/culvert/", dir+"/", "%i", role).Replace(u["ExecStart"][0])
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	_ = notify.SetReadDeadline(time.Now().Add(patience))
	if err := os.Chmod(filepath.Join(dir, "notify"), 0o777); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "log")
	said := func() string { return read(t, log) }
	started := make(chan *exec.Cmd, 1)
	go func() { // ends at once; the thread ends with it, as it has become another one
		defer close(started)
		runtime.LockOSThread()
		if cmd := startConfined(t, u, addresses, command, dir, log); cmd != nil {
			started <- cmd
		}
	}()
	cmd, ok := <-started
	if !ok {
		t.FailNow()
	}
	ended := make(chan error, 1)
	go func() { // ends with the process, which the end of the test kills at the latest; waited for by way of ended
		err := cmd.Wait()
		_ = notify.SetReadDeadline(time.Now()) // nothing more will come
		ended <- err
	}()
	defer func() { _ = cmd.Process.Kill() }() // it has ended, if all went well
	b := make([]byte, 256)
	n, err := notify.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Fatalf("the service manager hears %q, %v, want READY=1\n%s", b[:n], err, said())
	}
	for line := range strings.Lines(said()) {
		complains := strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")
		if complains && !strings.Contains(line, "network is unreachable") { // there is nobody else in this network
			t.Errorf("it has something to complain of: %s", line)
		}
	}
	status := read(t, fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if !regexp.MustCompile(`(?m)^NoNewPrivs:\s+1$`).MatchString(status) || !regexp.MustCompile(`(?m)^Uid:\s+65532\s`).MatchString(status) {
		t.Errorf("it is not confined:\n%s", status)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v\n%s", err, said())
	}
}

// etcCulvert makes a folder with what the examples name in /etc/culvert, readable by all.
func etcCulvert(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "sh", "-c", "cd "+dir+" && "+built(t)+" cert ca ca && "+built(t)+" cert issue spiffe://cluster.local/ns/mesh/sa/gw --name shop.example --name localhost"+
		" && mv gw.pem tls.crt && mv gw.key tls.key && for n in shop partner; do cp tls.crt $n.crt; cp tls.key $n.key; done && cp ca/ca.pem ca.crt && chown -R 65532 .")
	return dir
}

// startConfined turns the calling thread, which has to end afterwards, into one of another network and few capabilities, and
// starts command there with the sockets of addresses.
func startConfined(t *testing.T, u unitFile, addresses []string, command, dir, log string) *exec.Cmd {
	fail := func(err error) *exec.Cmd { t.Error(err); return nil }
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fail(err)
	}
	if out, err := exec.Command(program(t, "ip"), "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fail(fmt.Errorf("%w: %s", err, out))
	}
	out, err := os.Create(log)
	if err != nil {
		return fail(err)
	}
	defer out.Close()
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, strings.Fields(command)...)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, dir
	cmd.Env = []string{"NOTIFY_SOCKET=" + filepath.Join(dir, "notify"), "STATE_DIRECTORY=" + dir}
	for _, address := range addresses {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return fail(err)
		}
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			return fail(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if len(addresses) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(addresses)))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	var bounded []string
	for _, line := range u["CapabilityBoundingSet"] {
		bounded = append(bounded, strings.Fields(line)...)
	}
	numbers := map[string]uintptr{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_SETUID": unix.CAP_SETUID, "CAP_SETGID": unix.CAP_SETGID}
	for _, name := range bounded {
		if numbers[name] == 0 {
			return fail(fmt.Errorf("the test knows no %s", name))
		}
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, numbers[name])
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if !slices.Contains(cmd.SysProcAttr.AmbientCaps, c) {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return fail(err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fail(err)
	}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	return cmd
}
