package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"

	"culvert/capture/names"
	"culvert/pki"
)

// reload reads the configuration again. All of it is built and checked before anything changes; after a
// fault the gateway runs as before, and the log says why.
func (m *manager) reload(ctx context.Context, why string) {
	m.notify.reloading()
	defer m.notify.ready()
	m.log.Info("reloading", "reason", why)
	err := m.tryReload(ctx)
	if err == nil {
		m.counts.reloads.Add(1)
		m.log.Info("reloaded")
		m.announce()
		return
	}
	m.counts.reloadsFailed.Add(1)
	var wrong *faults
	if errors.As(err, &wrong) {
		for _, f := range wrong.list {
			m.log.Error("configuration fault", "place", f.place(), "reason", f.what)
		}
		m.log.Error("not reloaded: the old configuration goes on", "faults", len(wrong.list))
		return
	}
	m.log.Error("not reloaded: the old configuration goes on", "err", err)
}

// tryReload swaps in the configuration of now. Sockets of listeners that stay are kept, and live flows
// go on.
func (m *manager) tryReload(ctx context.Context) error {
	m.flags.running = m.cfg.signed
	cfg, p, err := load(m.flags)
	if err != nil {
		return err
	}
	undo, commit, err := m.replaceIdentity(ctx, cfg, p)
	if err != nil {
		return err
	}
	var moved net.Listener
	if err = cfg.testPolicies(m.identity.self()); err == nil {
		moved, err = m.moveAdmin(cfg)
	}
	if err != nil {
		undo()
		return err
	}
	verifier, err := m.tokens.prepare(cfg)
	if err != nil {
		undo()
		return tokenFaults(cfg, p, err)
	}
	before := m.adminAt
	m.adminAt = moved
	cfg.Config.Reserved = m.reserved()
	server, err := m.names.newNames(cfg)
	if err == nil {
		err = m.replaceFlows(ctx, cfg)
	}
	if err != nil {
		if moved != before && moved != nil {
			_ = moved.Close() // nothing was served on it
		}
		m.adminAt = before
		m.tokens.drop(verifier)
		undo()
		return asFaults(cfg, p, err)
	}
	if err := m.openACME(cfg); err != nil { // the flows are those of cfg already
		m.log.Error("no certificates are ordered", "err", err)
	}
	m.tokens.swap(verifier)
	m.names.swap(server, cfg)
	if !reflect.DeepEqual(cfg.Resolver, m.cfg.Resolver) {
		if r, err := names.NewResolver(&cfg.Resolver, m.lookup.dial); err == nil { // validate has looked
			m.lookup.swap(r)
		}
	}
	if moved != before {
		if before != nil {
			_ = before.Close() // ends its serving goroutine
		}
		m.serveAdmin()
		m.setReady(true)
	}
	commit()
	m.restartOnly(cfg)
	m.log.level.Set(cfg.Log.level())
	m.cfg = cfg
	logSigned(m.log.Logger, cfg)
	m.heart.serve(m.parts, m.log)
	return nil
}

// replaceIdentity puts the identity of cfg in place: the same source with its files read again, or another
// one. undo takes that back; commit ends what is no longer used. One of them is to be called.
func (m *manager) replaceIdentity(ctx context.Context, cfg *Config, p *places) (undo, commit func(), err error) {
	current := m.identity.current.Load().Source
	nothing := func() {}
	if reflect.DeepEqual(cfg.identity(), m.cfg.identity()) {
		if err := current.Reload(); err != nil {
			return nil, nil, fmt.Errorf("identity: %w", err)
		}
		return nothing, nothing, nil
	}
	var source *pki.Source
	if source, err = openIdentity(ctx, cfg, p, m.log.Logger); err != nil {
		return nil, nil, err
	}
	m.identity.swap(source)
	undo = func() {
		m.identity.swap(current)
		_ = source.Close() // it returns nil
	}
	return undo, func() { _ = current.Close() }, nil
}

// moveAdmin opens the admin address of cfg if it is another than now, and returns where it will be.
func (m *manager) moveAdmin(cfg *Config) (net.Listener, error) {
	if cfg.Admin.Address == m.cfg.Admin.Address {
		return m.adminAt, nil
	}
	if cfg.Admin.Address == "" {
		return nil, nil
	}
	return listenAdmin(m.sockets, cfg.Admin.Address)
}

// restartOnly says which changes wait for the next start.
func (m *manager) restartOnly(cfg *Config) {
	if cfg.Memory != m.cfg.Memory {
		m.log.Warn("memory changes with the next start", "now", m.cfg.Memory.String(), "then", cfg.Memory.String())
	}
	if cfg.Log.Format != m.cfg.Log.Format {
		m.log.Warn("log.format changes with the next start", "now", m.cfg.Log.Format, "then", cfg.Log.Format)
	}
}
