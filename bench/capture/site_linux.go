package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"culvert/bench/identity"
)

// The addresses of the two hosts.
const (
	appAddr = "10.1.0.1"
	farAddr = "10.1.0.2"
)

// site is the hosts, and what all pairs on them share.
type site struct {
	*settings
	dir, self string
	app, far  string // names of the namespaces
	server    *process
}

func newSite(s *settings) (*site, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "culvert-capture-")
	if err != nil {
		return nil, err
	}
	st := &site{settings: s, dir: dir, self: self, app: fmt.Sprintf("culvert-%d-app", os.Getpid()), far: fmt.Sprintf("culvert-%d-far", os.Getpid())}
	for _, program := range []*string{&s.gateway, &s.plain} {
		if *program, err = filepath.Abs(*program); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(st.identities(), st.hosts()); err != nil {
		return nil, errors.Join(err, st.close())
	}
	if st.server, err = st.start(st.far, st.self, "-role", "server"); err != nil {
		return nil, errors.Join(err, st.close())
	}
	return st, nil
}

// hosts makes both namespaces and the cable.
func (s *site) hosts() error {
	for _, line := range []string{
		"ip netns add " + s.app, "ip netns add " + s.far,
		"ip -n " + s.app + " link add eth0 type veth peer name eth0 netns " + s.far,
		"ip -n " + s.app + " addr add " + appAddr + "/24 dev eth0", "ip -n " + s.far + " addr add " + farAddr + "/24 dev eth0",
		"ip -n " + s.app + " link set eth0 up", "ip -n " + s.far + " link set eth0 up",
		"ip -n " + s.app + " link set lo up", "ip -n " + s.far + " link set lo up",
	} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

func (s *site) identities() error {
	ca, err := identity.NewCA(s.dir)
	if err != nil {
		return err
	}
	_, entryErr := ca.Issue("entry")
	_, exitErr := ca.Issue("exit")
	return errors.Join(entryErr, exitErr)
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// close ends what runs and takes the hosts away.
func (s *site) close() error {
	if s.server != nil {
		s.server.stop()
	}
	for _, host := range []string{s.app, s.far} {
		_ = exec.Command("ip", "netns", "del", host).Run() // it may not be there
	}
	return os.RemoveAll(s.dir)
}

// process is a program on a host.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (s *site) start(host, program string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command("ip", append([]string{"netns", "exec", host, program}, args...)...)}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in, p.out = in, bufio.NewReader(out)
	return p, p.cmd.Start()
}

func (p *process) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()         // killed
}

// pair is two gateways with a client.
type pair struct {
	s                   *site
	entry, exit, client *process
}

// pair starts gateways of a program, and has the app's host captured.
func (s *site) pair(program string) (p *pair, err error) {
	p = &pair{s: s}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	gateway := func(host, who string, more ...string) (*process, error) {
		return s.start(host, program, append([]string{"run", "--state", s.path("state-" + who), "--log-level", "warn",
			"--cert", s.path(who + ".pem"), "--key", s.path(who + ".key"), "--roots", s.path("roots.pem")}, more...)...)
	}
	if p.exit, err = gateway(s.far, "exit", "--hbone", farAddr+":15008", "--egress", farAddr); err != nil {
		return p, err
	}
	if p.entry, err = gateway(s.app, "entry", "--capture", "--via", farAddr+":15008", "--forward", forwardTCP+"="+serverTCP,
		"--forward", "udp:"+forwardUDP+"="+serverUDP); err != nil {
		return p, err
	}
	install := exec.Command("ip", "netns", "exec", s.app, s.gateway, "capture", "install", "--ports", "9000", "--fail", "closed")
	if out, err := install.CombinedOutput(); err != nil {
		return p, fmt.Errorf("capture install: %w: %s", err, out)
	}
	if p.client, err = s.start(s.app, s.self, "-role", "client"); err != nil {
		return p, err
	}
	for range 100 { // until both listen
		if err = p.ask(context.Background(), nil, "down", serverTCP, 1); err == nil {
			return p, p.ask(context.Background(), nil, "down", forwardTCP, 1)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return p, fmt.Errorf("the pair does not serve: %w", err)
}

func (p *pair) stop() {
	for _, one := range []*process{p.client, p.entry, p.exit} {
		if one != nil {
			one.stop()
		}
	}
}

// ask has the client do something and decodes what it says.
func (p *pair) ask(ctx context.Context, answer any, words ...any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(p.client.in, words...); err != nil {
		return err
	}
	line, err := p.client.out.ReadString('\n')
	if err != nil {
		return err
	}
	if text, failed := strings.CutPrefix(line, "error "); failed {
		return errors.New(strings.TrimSpace(text))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal([]byte(line), answer)
}

// counted returns how many datagrams have reached the server since the last call.
func (p *pair) counted(ctx context.Context) (n float64, err error) {
	err = p.ask(ctx, &n, "counted", serverCount)
	return n, err
}
