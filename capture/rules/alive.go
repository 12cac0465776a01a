package rules

import (
	"context"
	"strconv"
	"strings"
	"time"
)

const (
	// AliveInterval is how often a gateway says that it serves, with Alive.Refresh.
	AliveInterval = time.Second
	// aliveFor is how long that holds: some intervals, so that a busy gateway is not taken for a dead one, and not so
	// long that people notice.
	aliveFor = 5 * time.Second
)

// Served is a port on which a gateway takes captured flows.
type Served struct {
	Port     uint16
	TCP, UDP bool
}

// Alive tells the rules of this host that a gateway serves. Not for concurrent use.
type Alive struct {
	host Host
}

// NewAlive makes what tells the rules on h.
func NewAlive(h Host) *Alive { return &Alive{host: h.withDefaults()} }

// Refresh says that the ports are served for some seconds more. Where no rules are installed, or none with Fail open,
// it does nothing. It takes the capability CAP_NET_ADMIN.
func (a *Alive) Refresh(ports []Served) error { return a.set(ports, true) }

// Withdraw says that the ports are served no more, so that new flows pass by at once.
func (a *Alive) Withdraw(ports []Served) error { return a.set(ports, false) }

func (a *Alive) set(ports []Served, on bool) error {
	r, err := a.host.load()
	if err != nil || r == nil || r.Config.Fail != FailOpen {
		return err
	}
	k, err := r.Config.compile(r.IPv6)
	if err != nil {
		return err
	}
	var known []Served
	for _, s := range ports {
		for _, port := range k.gates() {
			if s.Port == port {
				known = append(known, s)
			}
		}
	}
	if len(known) == 0 {
		return nil
	}
	if k.Backend == BackendNFT {
		return setElements(known, on)
	}
	return a.setIPSets(known, r.IPv6, on)
}

// setIPSets is for iptables, whose sets know no protocols.
func (a *Alive) setIPSets(ports []Served, v6, on bool) error {
	var text strings.Builder
	families := []bool{false}
	if v6 {
		families = append(families, true)
	}
	for _, s := range ports {
		for _, six := range families {
			for _, half := range halves(six) {
				if on {
					text.WriteString("add " + ipsetName(s.Port, six) + " " + half.String() + " timeout " + strconv.Itoa(int(aliveFor.Seconds())) + "\n")
				} else {
					text.WriteString("del " + ipsetName(s.Port, six) + " " + half.String() + "\n")
				}
			}
		}
	}
	_, err := a.host.Run(context.Background(), Command{Args: []string{"ipset", "-exist", "restore"}, Stdin: text.String()})
	if said(err, "does not exist") {
		return nil // the set was removed since the record was read
	}
	return err
}
