package main

import (
	"context"
	"net"

	"culvert/policy/extauthz"
)

// newAuthorizers makes the set that the tunnel asks, with nobody in it yet.
func (b *parts) newAuthorizers() *extauthz.Set {
	return extauthz.NewSet(extauthz.Env{
		Log:       b.log.Logger,
		ClientTLS: b.identity.authorizerTLS,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return b.tunnel.DialOwn(ctx, network, address)
		},
	})
}

// openAuthorizers begins to connect to the authorizers of the configuration. The tunnel has been made, as it dials for them.
func (b *parts) openAuthorizers() error {
	change, err := b.asked.Prepare(b.cfg.Authorizers)
	if err != nil {
		return err
	}
	change.Stage()
	change.Commit()
	return nil
}

// replaceFlows has the tunnel do what cfg says, with the authorizers of cfg: those before can be asked until it does.
func (m *manager) replaceFlows(ctx context.Context, cfg *Config) error {
	change, err := m.asked.Prepare(cfg.Authorizers)
	if err != nil {
		return err
	}
	change.Stage()
	if err := m.tunnel.Reload(ctx, &cfg.Config); err != nil {
		change.Undo()
		return err
	}
	change.Commit()
	return nil
}
