package agent

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// handshakeProblem is the part that finds out with which peer nodes WireGuard has shaken hands.
const handshakeProblem = "WireGuard handshakes"

// wireGuardProblem is the part that makes and configures the device; devicePause is the pause after it failed.
const (
	wireGuardProblem = "WireGuard"
	devicePause      = 2 * time.Second
)

// handshakePause is the shortest pause between two looks while a handshake is missing: the kernel reports none.
const handshakePause = 500 * time.Millisecond

// lookout decides when to look again for handshakes that are missing.
type lookout struct {
	missing []model.WireGuardKey
	since   time.Time
}

// pause is how long to wait until the next look, given the keys whose handshakes are missing now: an eighth of the time
// for which the same ones have been missing, from handshakePause to a minute. So a node that is down costs next to
// nothing, and its handshake is found soon after it was made.
func (l *lookout) pause(missing []model.WireGuardKey, now time.Time) time.Duration {
	if len(missing) == 0 {
		*l = lookout{}
		return syncEvery
	}
	if !slices.Equal(missing, l.missing) {
		l.missing, l.since = missing, now
	}
	return min(max(handshakePause, now.Sub(l.since)/8), syncEvery)
}

// wireGuardKeyFile is the node's private key, beside the copy: root's alone. It lasts until the node restarts, so a
// node comes back with a new key.
func (a *Agent) wireGuardKeyFile() string {
	return filepath.Join(filepath.Dir(a.opt.CNISocket), "wireguard.key")
}

// wireGuard is the device that the node is to have: while it encrypts, and as long as others may still send to it.
func (a *Agent) wireGuard(view *model.Snapshot, port uint16) (*host.WireGuard, error) {
	if !view.Transport.Encrypted && !view.Self.ReceivesWireGuard && !view.WireGuardGrace {
		return nil, nil
	}
	key, err := host.LoadWireGuardKey(a.wireGuardKeyFile())
	if err != nil {
		return nil, err
	}
	return &host.WireGuard{PrivateKey: key, Port: port}, nil
}

// acceptPeers waits until the switch accepts what new peers send: they send as soon as they have shaken hands with the
// device. Only the host's part calls it.
func (a *Agent) acceptPeers(ctx context.Context, view *model.Snapshot) {
	peers := peerKeys(view)
	if slices.Equal(peers, a.accepted) {
		return
	}
	a.awaitSwitch(ctx)
	a.accepted = peers
}

// peerKeys are the keys of the peer nodes that are to be on the device, sorted.
func peerKeys(view *model.Snapshot) []model.WireGuardKey {
	var keys []model.WireGuardKey
	for _, path := range view.Paths {
		if path.WireGuard.Valid() {
			keys = append(keys, path.WireGuard.Key)
		}
	}
	slices.SortFunc(keys, model.WireGuardKey.Compare)
	return keys
}

// findHandshakes tells the loop which peer nodes WireGuard has shaken hands with, and returns the keys of the others.
func (a *Agent) findHandshakes() (missing []model.WireGuardKey, err error) {
	view := a.loop.View()
	peers := peerKeys(view)
	var keys []model.WireGuardKey
	if len(peers) > 0 {
		if keys, err = host.Handshakes(); err != nil {
			return peers, err
		}
	}
	if !slices.Equal(keys, view.Handshakes) {
		a.loop.Submit(state.SetHandshakes{Keys: keys})
	}
	return slices.DeleteFunc(peers, func(k model.WireGuardKey) bool { return k.In(keys) }), nil
}

// followHandshakes keeps what the loop knows of them.
func (a *Agent) followHandshakes(ctx context.Context, woken <-chan struct{}, ready func()) error {
	ready()
	var look lookout
	for ctx.Err() == nil {
		missing, err := a.findHandshakes()
		a.setProblem(handshakeProblem, err)
		pause := look.pause(missing, time.Now())
		a.mu.Lock()
		_, failed := a.problems[wireGuardProblem]
		a.mu.Unlock()
		if failed {
			pause = devicePause
			a.wake(kernelChanged)
		}
		sleepOr(ctx, pause, woken)
	}
	return nil
}
