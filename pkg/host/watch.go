package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// resubscribePause bounds how often a lost subscription is renewed.
const resubscribePause = time.Second

// Watch receives, coalesced, when something may have changed that Sync looks after, or that UnderlayMTU depends on: the
// gateway interface, addresses of the node and the links that carry them, routes of ours and to where ours lead. What a
// Sync does to routes itself is not reported. Changes of nftables are not watched. The channel is closed when ctx is done.
func (h *Host) Watch(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	sub, err := subscribe()
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			if err == nil {
				h.forward(ctx, sub, out)
				err = sub.end()
			}
			if ctx.Err() != nil {
				return
			}
			// What happened in between is lost, so say that something may have.
			h.log.Warn("network events lost, subscribing again", "err", err)
			h.changed(out)
			select {
			case <-ctx.Done():
				return
			case <-time.After(resubscribePause):
			}
			if sub, err = subscribe(); err == nil {
				h.changed(out)
			}
		}
	}()
	return out
}

func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// subscription is one netlink socket for each kind of event.
type subscription struct {
	links  chan netlink.LinkUpdate
	addrs  chan netlink.AddrUpdate
	routes chan netlink.RouteUpdate
	stop   chan struct{}
	failed chan error
	// carriers are the links that have, or had, a global address, by index.
	carriers map[int]bool
}

func subscribe() (*subscription, error) {
	s := &subscription{
		links:    make(chan netlink.LinkUpdate),
		addrs:    make(chan netlink.AddrUpdate),
		routes:   make(chan netlink.RouteUpdate),
		stop:     make(chan struct{}),
		failed:   make(chan error, 3),
		carriers: map[int]bool{},
	}
	fail := func(err error) {
		select {
		case s.failed <- err:
		default:
		}
	}
	if err := netlink.AddrSubscribeWithOptions(s.addrs, s.stop, netlink.AddrSubscribeOptions{ErrorCallback: fail}); err != nil {
		return nil, fmt.Errorf("subscribe to address events: %w", err)
	}
	if err := netlink.LinkSubscribeWithOptions(s.links, s.stop, netlink.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		close(s.stop)
		return nil, fmt.Errorf("subscribe to link events: %w", err)
	}
	if err := netlink.RouteSubscribeWithOptions(s.routes, s.stop, netlink.RouteSubscribeOptions{ErrorCallback: fail}); err != nil {
		close(s.stop)
		return nil, fmt.Errorf("subscribe to route events: %w", err)
	}
	have, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		close(s.stop)
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			s.carriers[a.LinkIndex] = true
		}
	}
	return s, nil
}

// end closes the sockets and returns what the subscription failed with, if it did.
func (s *subscription) end() error {
	close(s.stop)
	// The senders stop at the closed socket, but may have something to deliver first.
	for range s.links {
	}
	for range s.addrs {
	}
	for range s.routes {
	}
	select {
	case err := <-s.failed:
		return err
	default:
		return errors.New("a netlink socket was closed")
	}
}

// forward notifies of the events that concern us, until ctx is done or the subscription fails.
func (h *Host) forward(ctx context.Context, s *subscription, out chan struct{}) {
	for {
		var concerns bool
		select {
		case <-ctx.Done():
			return
		case e, ok := <-s.links:
			if !ok {
				return
			}
			concerns = s.carriers[e.Attrs().Index] || e.Attrs().Name == h.gatewayName()
		case e, ok := <-s.addrs:
			if !ok {
				return
			}
			concerns = e.Scope == unix.RT_SCOPE_UNIVERSE
			if concerns {
				s.carriers[e.LinkIndex] = true
			}
		case e, ok := <-s.routes:
			if !ok {
				return
			}
			concerns = h.routing.concerns(e)
		}
		if concerns {
			h.changed(out)
		}
	}
}

func (h *Host) gatewayName() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.name
}

// changed has the next Sync compare everything with the kernel, and whoever calls it know.
func (h *Host) changed(out chan struct{}) {
	h.mu.Lock()
	h.stale = true
	h.mu.Unlock()
	notify(out)
}
