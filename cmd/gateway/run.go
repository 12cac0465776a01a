package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"culvert/capture/rules"
)

// forcedEnd is what the parts have to end after a second signal; then the process ends without them.
const forcedEnd = time.Second

func runCommand() *cobra.Command {
	r := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run [-c FILE | flags]",
		Short: "Run a gateway until SIGTERM or SIGINT",
		Long: `Run a gateway, configured by a file or by flags alone.

  gateway run --socks 127.0.0.1:1080 --via exit.example:15008    an entry
  gateway run --hbone :15008 --egress '*.example.com:443'        an exit
  gateway run -c gateway.yaml                                    anything

The first SIGTERM or SIGINT drains: no new flows, those that live go on until --drain is
over. A second one ends at once. SIGHUP, or a change of FILE, reloads. SIGUSR2 puts a new
process, of the program that is installed now, in the place of this one: it takes the
sockets over, so that no connection is refused, and this one drains.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.changed = cmd.Flags().Changed
			return run(cmd, r)
		},
	}
	r.addFile(cmd.Flags())
	r.addConfigKey(cmd.Flags())
	r.addIdentity(cmd.Flags())
	r.addRun(cmd.Flags())
	completeRun(cmd)
	return cmd
}

// run starts a gateway and returns when it has ended.
func run(cmd *cobra.Command, r *runFlags) error {
	cfg, p, err := load(r)
	if err != nil {
		return err
	}
	// A log that nobody reads any more must not end the gateway.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(signals)
	log := newLogging(cmd.ErrOrStderr(), cfg.Log)
	if err := noCoreDumps(); err != nil {
		log.Warn("core dumps, which hold keys, are not switched off", "err", err)
	}
	notify, err := newNotifier(os.Getenv)
	if err != nil {
		log.Warn("the service manager will not hear of this gateway", "err", err)
	}
	defer notify.close()
	before, err := inheritPredecessor()
	if err != nil {
		return failed(err)
	}
	s, err := inheritSockets()
	if err != nil {
		return failed(err)
	}
	b, err := build(cmd.Context(), cfg, p, log, s)
	if err != nil {
		return failed(asFaults(cfg, p, err))
	}
	defer b.close()
	m := &manager{parts: b, flags: r, notify: notify, signals: signals, before: before, heart: newHeartbeat()}
	return failed(m.loop(cmd.Context()))
}

// manager is the main goroutine of a running gateway: it hears signals, the file and the watchdog.
type manager struct {
	*parts
	flags   *runFlags
	notify  *notifier
	signals <-chan os.Signal

	before     *predecessor // waits for this process to be ready; nil: nobody does
	next       *successor   // is to take the place of this process; nil: none is
	heart      *heartbeat
	handedOver bool // and has taken it
}

// loop runs until a signal, or ctx, has ended the gateway.
func (m *manager) loop(ctx context.Context) error {
	m.setReady(true)
	alive := m.watchdog()
	defer alive.Stop()
	if m.before == nil {
		m.notify.ready()
	} else if err := m.before.ready(); err != nil { // else it tells the service manager, which does not know us yet
		return m.drain(err.Error(), alive.C)
	}
	m.heart.serve(m.parts, m.log)
	m.heart.beat(m.log)
	beat := time.NewTicker(rules.AliveInterval)
	defer beat.Stop()
	var files fileWatches
	var look <-chan time.Time
	if m.flags.file != "" || len(m.cfg.Policy.Files) > 0 {
		files.watch(m.watched())
		ticker := time.NewTicker(watchInterval)
		defer ticker.Stop()
		look = ticker.C
	}
	changed, withdrawn := m.identity.changed(), m.tokens.changed()
	for {
		select {
		case <-ctx.Done():
			return m.drain(ctx.Err().Error(), alive.C)
		case <-changed:
			changed, withdrawn = m.recheck()
		case <-withdrawn:
			changed, withdrawn = m.recheck()
		case s := <-m.signals:
			switch s {
			case syscall.SIGUSR2:
				m.restart()
			case syscall.SIGHUP:
				files.changed() // what is there now is about to be read
				m.reload(ctx, "SIGHUP")
				files.watch(m.watched())
				changed, withdrawn = m.recheck()
			default:
				m.giveUpRestart()
				return m.drain(s.String(), alive.C)
			}
		case err := <-m.restarted():
			if err == nil {
				m.handOver()
				return m.drain("a new process serves", alive.C)
			}
			m.notRestarted(err)
		case <-look:
			if m.next == nil && files.changed() { // a new process reads it itself
				m.reload(ctx, "a file changed")
				files.watch(m.watched())
				changed, withdrawn = m.recheck()
			}
		case <-beat.C:
			m.heart.beat(m.log)
		case <-alive.C:
			m.notify.alive()
		}
	}
}

// recheck looks at the peers and their tokens again, as roots, revocation lists and the keys of issuers may have changed, and
// returns what tells when they change next.
func (m *manager) recheck() (changed, withdrawn <-chan struct{}) {
	changed, withdrawn = m.identity.changed(), m.tokens.changed() // first, so that no change is missed
	m.tunnel.Recheck()
	return changed, withdrawn
}

// watched are the files whose changes count.
func (m *manager) watched() []string {
	files := slices.Clone(m.cfg.Policy.Files)
	if m.flags.file != "" {
		files = append(files, m.flags.file)
	}
	if m.flags.wantsSigned() { // one of the two is in place before the other
		for _, file := range slices.Clone(files) {
			files = append(files, file+signatureSuffix)
		}
	}
	return files
}

// watchdog ticks as often as the service manager should hear from us; never, if it does not want to.
func (m *manager) watchdog() *time.Ticker {
	if every := m.notify.interval(); every > 0 {
		return time.NewTicker(every)
	}
	t := time.NewTicker(time.Hour)
	t.Stop()
	return t
}

func (m *manager) setReady(ready bool) {
	if m.admin != nil {
		m.admin.ready.Store(ready)
	}
}

// drain ends the gateway: no new flows, and those that live go on until the configured time is over or a
// second signal comes.
func (m *manager) drain(why string, alive <-chan time.Time) error {
	if !m.handedOver {
		m.heart.stop(m.log)
		m.notify.stopping()
		if m.admin != nil {
			m.admin.draining.Store(true)
		}
	}
	grace := m.cfg.drain()
	m.log.Info("draining", "reason", why, "flows", m.tunnel.Stats().Active, "grace", grace)
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	done := make(chan error, 1)
	// Ends with the last flow, with ctx, or with the process after a second signal; waited for below.
	go func() { done <- m.tunnel.Drain(ctx) }()
	told := false // to end, after a new process has taken the place of this one
	for {
		select {
		case err := <-done:
			if err != nil {
				m.log.Warn("drained; flows that outlived the grace were cut", "grace", grace)
			} else {
				m.log.Info("drained")
			}
			return nil
		case s := <-m.signals:
			switch {
			case s == syscall.SIGHUP, s == syscall.SIGUSR2:
			case m.handedOver && !told:
				told = true // a service manager tells all processes of a service; this one ends already
			default:
				left := m.tunnel.Stats().Active
				end(errForced)
				return forced(s, left, done)
			}
		case <-m.successorEnded():
			m.log.Error("the new process has ended; nothing is accepted until a gateway is started", "state", m.next.cmd.ProcessState.String())
			m.next = nil
		case <-alive:
			m.notify.alive()
		}
	}
}

// errForced is why a gateway ends that was told twice, and its flows with it.
var errForced = errors.New("ended at once by a second signal")

// forced waits, not for long, for what was cut by a second signal.
func forced(s os.Signal, left int64, done <-chan error) error {
	select {
	case <-done:
	case <-time.After(forcedEnd):
	}
	return fmt.Errorf("%w (%v); %d flows were cut", errForced, s, left)
}
