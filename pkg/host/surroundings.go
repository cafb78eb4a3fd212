package host

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstProxyChain is what kube-proxy's mode iptables makes the packets of all Services pass. The kubelet makes other
// chains whose names begin with KUBE.
const firstProxyChain = "KUBE-SERVICES"

// ProxyRules returns what kube-proxy has in nftables, sorted: its tables in the mode nftables ("ip kube-proxy"), and in
// the mode iptables the first of its chains ("ip nat KUBE-SERVICES") where iptables writes to nftables. Rules of
// iptables-legacy and of IPVS are not found.
func ProxyRules() ([]string, error) {
	families := map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	var found []string
	collect := func(m nftMessage) {
		table := families[m.family] + " " + m.tableOf()
		switch {
		case m.tableOf() == "kube-proxy" && !slices.Contains(found, table):
			found = append(found, table)
		case m.text(unix.NFTA_CHAIN_NAME) == firstProxyChain:
			found = append(found, table+" "+firstProxyChain)
		}
	}
	err := queryNFT(unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, unix.NFPROTO_UNSPEC, unix.NLM_F_DUMP, collect)
	slices.Sort(found)
	return found, err
}

// KernelDatapath returns an error while the kernel has no Open vSwitch. The question makes the kernel load the module,
// where it has one.
func KernelDatapath() error { return kernelServes("ovs_datapath") }

// kernelServes returns an error while the kernel lacks a family of generic netlink.
func kernelServes(family string) error {
	if _, err := netlink.GenlFamilyGet(family); err != nil {
		return fmt.Errorf("the kernel's datapath of Open vSwitch: %w; install the kernel's package with the module "+
			"openvswitch and load it (modprobe openvswitch), or set datapath: netdev", err)
	}
	return nil
}
