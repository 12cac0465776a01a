package rules

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// Served is a port on which a gateway takes captured flows, and the Mode of the rules that it can take them from.
type Served struct {
	Port     uint16
	TCP, UDP bool
	Mode     string
}

// Alive tells the rules of this host that a gateway serves. Not for concurrent use.
type Alive struct {
	host   Host
	filter filter
	last   time.Time // of telling them; zero: there was nobody to tell
	late   time.Duration
}

// NewAlive makes what tells the rules on h.
func NewAlive(h Host) *Alive { return &Alive{host: h.withDefaults()} }

// Refresh says that the ports are served for some seconds more. Where no rules are installed, or none with Fail open,
// it does nothing. Ports of another Mode than the rules' are not served, which is an error. It takes the capability
// CAP_NET_ADMIN.
func (a *Alive) Refresh(ports []Served) error { return a.set(ports, true) }

// Late returns for how long the rules took the gateway for gone before the last Refresh, which came too late, so that new flows have
// passed by; 0 if they did not.
func (a *Alive) Late() time.Duration { return a.late }

// Withdraw says that the ports are served no more, so that new flows pass by at once.
func (a *Alive) Withdraw(ports []Served) error { return a.set(ports, false) }

func (a *Alive) set(ports []Served, on bool) error {
	last := a.last
	a.last, a.late = time.Time{}, 0
	r, err := a.host.load()
	if err != nil || r == nil || r.Config.Fail != FailOpen {
		return err
	}
	k, err := r.Config.compile(r.IPv6)
	if err != nil {
		return err
	}
	var known []Served
	var wrong error
	for _, s := range ports {
		switch {
		case !slices.Contains(k.gates(), s.Port):
		case s.Mode != k.Mode && !on:
		case s.Mode != k.Mode:
			wrong = fmt.Errorf("the rules lead flows to port %d by %s, and the gateway takes those of %s there; give `gateway capture install --mode %[3]s`, or run the gateway with --%s", s.Port, k.Mode, s.Mode, flagOf(k.Mode))
		default:
			known = append(known, s)
		}
	}
	if len(known) == 0 {
		return wrong
	}
	if k.Backend == BackendNFT {
		err = a.filter.set(known, on)
	} else {
		err = a.setIPSets(known, r.IPv6, on)
	}
	if on && err == nil {
		a.told(last)
	}
	return errors.Join(wrong, err)
}

// told notes that the rules were told, after last.
func (a *Alive) told(last time.Time) {
	a.last = time.Now()
	if silent := a.last.Sub(last); !last.IsZero() && silent > aliveFor {
		a.late = silent - aliveFor
	}
}

// flagOf is the flag of `gateway run` for flows that come by a Mode.
func flagOf(mode string) string {
	if mode == ModeRedirect {
		return "redirect"
	}
	return "capture"
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
