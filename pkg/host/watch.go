package host

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// resubscribePause is the minimum interval between attempts to renew a lost subscription.
const resubscribePause = time.Second

// Watch receives, coalesced, when state may have changed that Sync maintains or UnderlayMTU depends on: the gateway
// interface, addresses of the node and the links that carry them, Weft's routes and foreign routes to their
// destinations, forwarding sysctls, and Weft's nftables table. Changes of routes and nftables by Sync itself are not
// reported. It does not block; the channel is closed when ctx is done. After lost events the next Sync compares
// everything.
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
			// Events in between are lost, so report a change.
			h.log.Warn("network events lost; subscribing again", "err", err)
			h.markAllDirty(out)
			select {
			case <-ctx.Done():
				return
			case <-time.After(resubscribePause):
			}
			if sub, err = subscribe(); err == nil {
				h.markAllDirty(out)
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
	// settings are events of sysctls and routing rules, tables those of nftables.
	settings, tables             chan syscall.NetlinkMessage
	settingsSocket, tablesSocket *nl.NetlinkSocket
	stop                         chan struct{}
	failed                       chan error
	// carriers are the indexes of links that have, or had, a global address.
	carriers map[int]bool
}

func subscribe() (*subscription, error) {
	s := &subscription{
		links:    make(chan netlink.LinkUpdate),
		addrs:    make(chan netlink.AddrUpdate),
		routes:   make(chan netlink.RouteUpdate),
		settings: make(chan syscall.NetlinkMessage),
		tables:   make(chan syscall.NetlinkMessage),
		stop:     make(chan struct{}),
		failed:   make(chan error, 5),
		carriers: map[int]bool{},
	}
	fail := func(err error) {
		select {
		case s.failed <- err:
		default:
		}
	}
	var err error
	s.settingsSocket, err = subscribeTo(unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to events of network settings: %w", err)
	}
	if s.tablesSocket, err = subscribeTo(unix.NETLINK_NETFILTER, nftablesGroup); err != nil {
		s.settingsSocket.Close()
		return nil, fmt.Errorf("subscribe to events of nftables: %w", err)
	}
	go receive(s.settingsSocket, s.settings, fail)
	go receive(s.tablesSocket, s.tables, fail)
	if err := s.subscribeRoutes(fail); err != nil {
		_ = s.end()
		return nil, err
	}
	have, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		_ = s.end()
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			s.carriers[a.LinkIndex] = true
		}
	}
	return s, nil
}

// subscribeRoutes subscribes to links, addresses and routes. On failure it closes the channels without a sender.
func (s *subscription) subscribeRoutes(fail func(error)) error {
	return errors.Join(
		subscribed(s.addrs, "address",
			netlink.AddrSubscribeWithOptions(s.addrs, s.stop, netlink.AddrSubscribeOptions{ErrorCallback: fail})),
		subscribed(s.links, "link",
			netlink.LinkSubscribeWithOptions(s.links, s.stop, netlink.LinkSubscribeOptions{ErrorCallback: fail})),
		subscribed(s.routes, "route",
			netlink.RouteSubscribeWithOptions(s.routes, s.stop, netlink.RouteSubscribeOptions{ErrorCallback: fail})),
	)
}

func subscribed[T any](events chan T, what string, err error) error {
	if err == nil {
		return nil
	}
	close(events)
	return fmt.Errorf("subscribe to %s events: %w", what, err)
}

// end closes the sockets, waits for the readers and returns the error of the subscription.
func (s *subscription) end() error {
	close(s.stop)
	s.settingsSocket.Close()
	s.tablesSocket.Close()
	// The readers stop at the closed socket, but may have messages to deliver first.
	drain(s.links)
	drain(s.addrs)
	drain(s.routes)
	drain(s.settings)
	drain(s.tables)
	select {
	case err := <-s.failed:
		return err
	default:
		return errors.New("a netlink socket was closed")
	}
}

func drain[T any](events <-chan T) {
	for range events {
	}
}

// forward reports relevant events until ctx is done or the subscription fails.
func (h *Host) forward(ctx context.Context, s *subscription, out chan struct{}) {
	events := tableEvents{ours: &h.nft.generations}
	for {
		var relevant bool
		select {
		case <-ctx.Done():
			return
		case e, ok := <-s.settings:
			if !ok {
				return
			}
			relevant = settingRelevant(e, h.gatewayIndex())
		case e, ok := <-s.tables:
			if !ok {
				return
			}
			if relevant = events.add(e); relevant {
				h.mu.Lock()
				h.dirtyTable = true
				h.mu.Unlock()
			}
		case e, ok := <-s.links:
			if !ok {
				return
			}
			relevant = s.carriers[e.Attrs().Index] || h.isGateway(e.Attrs().Name) ||
				e.Attrs().Name == model.WireGuardName || model.IsIPIPDevice(e.Attrs().Name)
		case e, ok := <-s.addrs:
			if !ok {
				return
			}
			if e.Scope == unix.RT_SCOPE_UNIVERSE {
				s.carriers[e.LinkIndex] = true
			}
			relevant = e.Scope == unix.RT_SCOPE_UNIVERSE || reachable(prefix(&e.LinkAddress).Addr()) ||
				e.LinkIndex == h.gatewayIndex()
		case e, ok := <-s.routes:
			if !ok {
				return
			}
			relevant = h.routeRelevant(e)
		}
		if relevant {
			h.markDirty(out)
		}
	}
}

// isGateway reports whether it is the name of the gateway interface. Uplinks are known by their addresses.
func (h *Host) isGateway(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.name == name
}

func (h *Host) gatewayIndex() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.index
}

// markDirty makes the next Sync compare links, addresses and routes with the kernel, and notifies the receiver.
func (h *Host) markDirty(out chan struct{}) {
	h.mu.Lock()
	h.dirty = true
	h.mu.Unlock()
	notify(out)
}

// markAllDirty makes the next Sync compare everything, and notifies the receiver.
func (h *Host) markAllDirty(out chan struct{}) {
	h.mu.Lock()
	h.dirtyTable = true
	h.mu.Unlock()
	h.markDirty(out)
}
