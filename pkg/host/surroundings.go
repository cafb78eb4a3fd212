package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ProxyRules returns kube-proxy's chains in nftables, as "family table chain", sorted: those of its mode nftables, and of
// its mode iptables where iptables writes to nftables. Rules of iptables-legacy and of IPVS are not found.
func ProxyRules() ([]string, error) {
	families := map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	var chains []string
	err := queryNFT(unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, unix.NFPROTO_UNSPEC, unix.NLM_F_DUMP, func(m nftMessage) {
		name := m.text(unix.NFTA_CHAIN_NAME)
		if m.tableOf() == "kube-proxy" || name == "KUBE-SERVICES" { // the kubelet makes other chains that begin with KUBE
			chains = append(chains, strings.Join([]string{families[m.family], m.tableOf(), name}, " "))
		}
	})
	slices.Sort(chains)
	return chains, err
}

// KernelDatapath returns an error while the kernel has no Open vSwitch. The question makes the kernel load the module, where
// it has one.
func KernelDatapath() error {
	if _, err := netlink.GenlFamilyGet("ovs_datapath"); err != nil {
		return fmt.Errorf("the kernel's datapath of Open vSwitch: %w; install the kernel's package with the module openvswitch and "+
			"load it (modprobe openvswitch), or set datapath: netdev", err)
	}
	return nil
}
