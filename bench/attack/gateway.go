package attack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"culvert/bench/identity"
	"culvert/tunnel/tunneltest"
)

// patience bounds every wait for something that must come.
const patience = 30 * time.Second

// Mesh is the CA and the folder that the gateways of one run share.
type Mesh struct {
	bin string
	dir string
	ca  *identity.CA

	mu       sync.Mutex
	gateways []*Gateway // guarded by mu
}

// NewMesh makes a CA in dir, for gateways that are started from the program bin.
func NewMesh(bin, dir string) (*Mesh, error) {
	ca, err := identity.NewCA(dir)
	return &Mesh{bin: bin, dir: dir, ca: ca}, err
}

// Close ends the gateways that were started, so that what is done with them fails.
func (m *Mesh) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.gateways {
		g.Stop()
	}
}

func (m *Mesh) path(name string) string { return filepath.Join(m.dir, name) }

// Gateway is a gateway in a process of its own.
type Gateway struct {
	admin string
	cmd   *exec.Cmd
	done  chan struct{} // closed when the process has ended
	log   tunneltest.Log
}

// Log is the output of the process so far.
func (g *Gateway) Log() string { return g.log.String() }

// start runs a gateway with this configuration, without the sections identity and admin, and waits until it
// is ready. It gets the sockets that its listeners name.
func (m *Mesh) start(name, config string, listeners ...net.Listener) (*Gateway, error) {
	if _, err := m.ca.Issue(name); err != nil {
		return nil, err
	}
	adm, err := listen()
	if err != nil {
		return nil, err
	}
	listeners = append(listeners, adm)
	config += fmt.Sprintf("\nidentity: {cert: %s.pem, key: %s.key, roots: roots.pem}\nadmin: {address: %q}\n", name, name, adm.Addr())
	if err := os.WriteFile(m.path(name+".yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	g := &Gateway{admin: adm.Addr().String(), done: make(chan struct{})}
	g.cmd = exec.Command(m.bin, "run", "-c", m.path(name+".yaml"), "--log-level", "warn")
	g.cmd.Stdout, g.cmd.Stderr = &g.log, &g.log
	g.cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(listeners)))
	for _, ln := range listeners {
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		_ = ln.Close() // the process has it
		g.cmd.ExtraFiles = append(g.cmd.ExtraFiles, f)
	}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process; Stop waits for it
		_ = g.cmd.Wait() // how it ended is in the log
		close(g.done)
	}()
	m.mu.Lock()
	m.gateways = append(m.gateways, g)
	m.mu.Unlock()
	return g, g.ready()
}

func (g *Gateway) ready() error {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		_, err := g.get("/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-g.done:
			return fmt.Errorf("the gateway ended: %s", g.Log())
		default:
		}
		if time.Now().After(end) {
			g.Stop()
			return fmt.Errorf("the gateway is not ready: %w", err)
		}
	}
}

// Stop ends the process and waits for that.
func (g *Gateway) Stop() {
	_ = g.cmd.Process.Kill() // it may have ended
	<-g.done
}

func (g *Gateway) get(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.admin+path, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return string(body), err
}

// Figures are what a gateway shows of itself in /metrics.
type Figures struct {
	RSS         float64 // bytes
	CPU         float64 // seconds
	Files       float64 // open descriptors
	Goroutines  float64
	Dials       float64 // to destinations, so far
	HopDials    float64 // to hops, so far
	Transports  float64 // to hops, open
	Connections float64 // accepted, open
	Active      float64 // flows that are not over
	Offences    float64 // connections ended for what the other end did, so far
	StallResets float64 // streams reset for the memory budget, so far
}

// Figures reads /metrics.
func (g *Gateway) Figures() (f Figures, err error) {
	text, err := g.get("/metrics")
	if err != nil {
		return f, err
	}
	fields := map[string]*float64{
		"process_resident_memory_bytes": &f.RSS, "process_cpu_seconds_total": &f.CPU, "process_open_fds": &f.Files,
		"go_goroutines": &f.Goroutines, "culvert_dials_total": &f.Dials, "culvert_transport_dials_total": &f.HopDials,
		"culvert_transports": &f.Transports, "culvert_connections": &f.Connections, "culvert_active_flows": &f.Active,
		"culvert_stalled_resets_total": &f.StallResets, "culvert_offences_total": &f.Offences,
	}
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		name, value, ok := strings.Cut(sc.Text(), " ")
		if to := fields[name]; ok && to != nil {
			if *to, err = strconv.ParseFloat(value, 64); err != nil {
				return f, err
			}
			delete(fields, name)
		}
	}
	for name := range fields {
		return f, fmt.Errorf("/metrics has no %s", name)
	}
	return f, nil
}

func listen() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// files names the open descriptors of the gateway, where the system tells.
func (g *Gateway) files() (list []string) {
	dir := fmt.Sprintf("/proc/%d/fd", g.cmd.Process.Pid)
	entries, _ := os.ReadDir(dir) // elsewhere there is no such folder
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			list = append(list, to)
		}
	}
	return list
}
