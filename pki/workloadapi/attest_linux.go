package workloadapi

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// canAttest reports why this system cannot tell who is at the other end of a socket.
func canAttest() error { return nil }

// peer is the process that opened a connection.
type peer struct {
	pid      int32
	uid, gid uint32
	start    uint64 // when it started, in ticks since boot

	mu    sync.Mutex
	pidfd int // guarded by mu: the process itself, whatever becomes of its number; -1 where the kernel has no SO_PEERPIDFD, or after close
}

// peerOf asks the kernel who opened a connection (SO_PEERCRED: as of connect(2)). The number of a process may be given to
// another after its end: the kernel's handle of the process (Linux 6.5) tells that, or else the time at which it started,
// which must be the same at each look.
func peerOf(nc *net.UnixConn) (*peer, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr, fdErr error
	pidfd := -1
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if pidfd, fdErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); fdErr != nil {
			pidfd = -1
		}
	})
	if err = errors.Join(err, credErr); err != nil {
		return nil, err
	}
	if errors.Is(fdErr, unix.ESRCH) || errors.Is(fdErr, unix.EINVAL) || cred.Pid == 0 {
		return nil, errEnded // or in another PID namespace
	}
	p := &peer{pid: cred.Pid, uid: cred.Uid, gid: cred.Gid, pidfd: pidfd}
	if p.start, err = startTime(p.pid); err == nil && !p.alive() {
		err = errEnded
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// errEnded says that the number of a process means nothing any more.
var errEnded = errors.New("the process has ended")

// close gives the handle back.
func (p *peer) close() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fd := p.pidfd
	p.pidfd = -1
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// alive reports whether the process lives, as far as the kernel can say.
func (p *peer) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return true
	}
	// A handle can be read when its process has ended (pidfd_open(2)).
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 0
}

// attest looks at what the process executes now. What it saw is of that process only if it is the same one, and lives,
// before and after.
func (p *peer) attest() (*process, error) {
	got := &process{pid: p.pid, uid: p.uid, gid: p.gid}
	exe := procPath(p.pid, "exe")
	var err error
	if got.path, err = os.Readlink(exe); err != nil {
		return nil, err
	}
	if got.file, err = os.Stat(exe); err != nil { // follows to the file itself, whatever its path is
		return nil, err
	}
	start, err := startTime(p.pid)
	if err != nil {
		return nil, err
	}
	if start != p.start || !p.alive() {
		return nil, errEnded
	}
	return got, nil
}

func procPath(pid int32, name string) string {
	return "/proc/" + strconv.Itoa(int(pid)) + "/" + name
}

// startTime returns field 22 of /proc/PID/stat (proc(5)).
func startTime(pid int32) (uint64, error) {
	const startField = 22
	text, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return 0, err
	}
	// The second field, the name in parentheses, may hold anything; the third follows the last parenthesis.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) <= startField-3 {
		return 0, fmt.Errorf("%s has %d fields", procPath(pid, "stat"), len(fields)+2)
	}
	return strconv.ParseUint(string(fields[startField-3]), 10, 64)
}
