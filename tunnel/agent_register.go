package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert/tunnel/h2"
)

// registration is an agent's end of a registration, see pathAgent.
type registration struct {
	// immutable after register
	run *agentRun
	s   *serverConn
	st  *h2.Stream // nil: not begun

	over   chan struct{} // closed when it has ended
	moving chan struct{} // closed when the connection should be replaced

	mu      sync.Mutex // guards the group below
	granted map[string]bool
	ending  bool  // over is closed, or will be
	asked   bool  // moving is closed
	err     error // why it has ended
}

// register claims the agent's names and waits until all are answered.
func (r *registration) register(ctx context.Context, s *serverConn) error {
	hop := r.run.conf.chain.last
	st, err := s.conn.Open(ctx, &h2.Header{Method: "POST", Scheme: "https", Authority: "agents", Path: pathAgent}, false)
	if err != nil {
		return fmt.Errorf("hop %s: %w", hop.Name, err)
	}
	r.mu.Lock()
	r.s, r.st = s, st
	late := r.ending
	r.mu.Unlock()
	if late {
		_ = st.Close() // the connection is being left
		return errDraining
	}
	answered := make(chan struct{})
	if err = r.claim(ctx, st); err == nil {
		s.g.work.Add(1)
		go r.readLoop(answered) // ends with the registration, which ends with the connection; Close waits for it
		select {
		case <-answered:
			return nil
		case <-r.over:
			return fmt.Errorf("hop %s: the registration has ended: %w", hop.Name, r.reason())
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	st.Reset(h2.Cancel)
	_ = st.Close() // it was reset
	return fmt.Errorf("hop %s: %w", hop.Name, err)
}

// claim sends the claims and waits for the head of the response.
func (r *registration) claim(ctx context.Context, st *h2.Stream) error {
	var lines strings.Builder
	for _, name := range r.run.conf.names {
		lines.WriteString(wordClaim + " " + name + "\n")
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := st.SetWriteDeadline(deadline); err != nil {
			return err
		}
		defer st.SetWriteDeadline(time.Time{}) // else end could not be told later
	}
	if lines.Len() > 0 {
		if _, err := io.WriteString(st, lines.String()); err != nil {
			return err
		}
	}
	resp, err := st.Response(ctx)
	if err != nil {
		return err
	}
	if resp.Status != statusOK {
		return &RefusedError{Status: resp.Status, Hop: r.run.conf.chain.last.Name, Statuses: parseProxyStatus(resp.Values(fieldProxyStatus))}
	}
	return nil
}

// readLoop reads what the hop answers until the registration ends. answered is closed when all names have an answer.
func (r *registration) readLoop(answered chan struct{}) {
	defer r.s.g.work.Done()
	left := map[string]bool{"": true} // for wordRegistered
	for _, name := range r.run.conf.names {
		left[name] = true
	}
	told := false
	lines := bufio.NewScanner(r.st)
	lines.Buffer(make([]byte, 0, 256), maxAnswerLine)
	for {
		if !told && len(left) == 0 {
			told = true
			r.tell()
			close(answered)
		}
		if !lines.Scan() {
			break
		}
		word, rest, _ := strings.Cut(lines.Text(), " ")
		name, reason, _ := strings.Cut(rest, " ")
		if !r.note(word, name, reason) {
			break
		}
		delete(left, name)
	}
	err := lines.Err()
	if err == nil {
		err = errLeft
	}
	r.finish(err)
	_ = r.st.Close()
}

// maxKeyAddrs is how many addresses a key may have.
const maxKeyAddrs = 2

// errLeft is why a registration ends whose hop has ended it.
var errLeft = errors.New("the hop has ended the registration") // immutable

// note takes one answer; false: it is none.
func (r *registration) note(word, name, reason string) bool {
	log := r.s.g.env.Log.With("listener", r.run.name, "hop", r.run.conf.chain.name, "host", printable(name))
	if word == wordRegistered {
		return name == ""
	}
	if _, addr := keyAddress(name); !addr && !slices.Contains(r.run.conf.names, name) {
		return false // nobody has claimed that
	}
	r.mu.Lock()
	if _, there := r.granted[name]; !there && len(r.granted) >= len(r.run.conf.names)+maxKeyAddrs {
		r.mu.Unlock()
		return false
	}
	had := r.granted[name]
	r.granted[name] = word == wordGranted
	r.mu.Unlock()
	switch word {
	case wordGranted:
	case wordRefused:
		log.Warn("agent does not get a name", "reason", printable(reason))
	case wordWithdrawn:
		if had {
			log.Warn("agent loses a name", "reason", printable(reason))
		}
	default:
		return false
	}
	return true
}

// tell logs under which names the agent is reached.
func (r *registration) tell() {
	r.mu.Lock()
	var names []string
	for name, yes := range r.granted {
		if yes {
			names = append(names, name)
		}
	}
	r.mu.Unlock()
	slices.Sort(names)
	r.s.g.env.Log.Info("agent is registered", "listener", r.run.name, "hop", r.run.conf.chain.name, "peer", r.s.proof.id.String(), "names", strings.Join(names, " "))
}

// finish notes that the registration has ended; the first reason counts.
func (r *registration) finish(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ending {
		r.ending, r.err = true, err
		close(r.over)
	}
}

// end leaves the hop: no new flows are to come by this connection.
func (r *registration) end() {
	r.mu.Lock()
	st := r.st
	r.mu.Unlock()
	r.finish(errors.New("the agent leaves the connection"))
	if st != nil {
		_ = st.CloseWrite() // all claims were written, so it waits for nothing
	}
}

// move has the agent make another connection and leave this one then.
func (r *registration) move() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.asked {
		r.asked = true
		close(r.moving)
	}
}

// await returns when another connection is wanted, or the run is over.
func (r *registration) await(ctx context.Context) {
	select {
	case <-r.over:
	case <-r.moving:
	case <-r.s.conn.Done():
	case <-r.s.conn.Retired():
	case <-ctx.Done():
	}
}

// why says for what reason another connection is wanted.
func (r *registration) why() string {
	if err := r.s.conn.Err(); err != nil {
		return err.Error()
	}
	if err := r.reason(); err != nil {
		return err.Error()
	}
	select {
	case <-r.s.conn.Retired():
		return "the hop takes no new flows on this one"
	default:
		return "the certificate shown on this one ends soon"
	}
}

func (r *registration) reason() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
