// Command routes keeps the routes to all pods in its network namespace: each pod CIDR of each Node by way of the
// node's InternalIP of that family. It is what a cloud's route controller is elsewhere; the API server reaches
// webhooks, extension API servers and pods/proxy over it.
//
// One goroutine works, after every change of a Node. It owns the routes with its protocol number and leaves all
// others alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// protocol marks the routes as this program's: a number that rt_protos(5) does not assign.
	protocol = 87
	// retryInterval is the pause after a route that the kernel did not take.
	retryInterval = time.Second
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *kubeconfig)
	stop()
	if err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}

// run returns when ctx ends, or when it cannot begin.
func run(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("read the kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	nodes := factory.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	_, err = nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	lister := nodes.Lister()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		var retry <-chan time.Time
		list, err := lister.List(labels.Everything())
		if err == nil {
			err = reconcile(desiredRoutes(list))
		}
		if err != nil {
			slog.Warn("routes to pods are not in sync; retries", "error", err, "after", retryInterval)
			retry = time.After(retryInterval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		}
	}
}

// desiredRoutes returns the gateway of each pod CIDR.
func desiredRoutes(nodes []*corev1.Node) map[netip.Prefix]netip.Addr {
	desired := map[netip.Prefix]netip.Addr{}
	for _, n := range nodes {
		for _, text := range n.Spec.PodCIDRs {
			cidr, err := netip.ParsePrefix(text)
			if err != nil {
				slog.Warn("invalid pod CIDR", "node", n.Name, "cidr", text)
				continue
			}
			for _, address := range n.Status.Addresses {
				addr, err := netip.ParseAddr(address.Address)
				if address.Type == corev1.NodeInternalIP && err == nil && addr.Is4() == cidr.Addr().Is4() {
					desired[cidr] = addr
				}
			}
		}
	}
	return desired
}

// reconcile makes the program's routes the desired ones.
func reconcile(desired map[netip.Prefix]netip.Addr) error {
	missing := maps.Clone(desired)
	installed, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: protocol,
		Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for _, r := range installed {
		cidr, gateway := prefixOf(r.Dst), addrOf(r.Gw)
		if desired[cidr] == gateway {
			delete(missing, cidr)
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("delete the route to %s via %s: %w", cidr, gateway, err))
		}
	}
	for cidr, gateway := range missing {
		route := &netlink.Route{Dst: ipNet(cidr), Gw: gateway.AsSlice(), Protocol: protocol}
		if err := netlink.RouteReplace(route); err != nil {
			errs = append(errs, fmt.Errorf("add the route to %s via %s: %w", cidr, gateway, err))
			continue
		}
		slog.Info("route added", "cidr", cidr, "via", gateway)
	}
	return errors.Join(errs...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf returns an invalid prefix for invalid input.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), bits)
}

func addrOf(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip) // invalid for invalid input
	return addr.Unmap()
}
