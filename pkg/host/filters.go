package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A packet passes only when every table accepts it, so no rule of Weft's helps against another program's chain that
// drops packets by default. Docker and ufw make such a chain of iptables' FORWARD. Weft does not change it: its owner
// may rewrite it at any time, and may drop on purpose. Sync reports it instead.

// filteringChain is a chain that drops forwarded packets by policy.
type filteringChain struct {
	family      uint8
	table, name string
}

func (c filteringChain) String() string {
	family := map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}[c.family]
	return fmt.Sprintf("%s %s %s", family, c.table, c.name)
}

// filteredForwarding returns an error for each chain of another program that drops forwarded packets by policy and
// whose table does not mention the gateway interface in any rule. Rules of iptables-legacy are not in nftables and are
// not found.
func filteredForwarding(d Desired) error {
	var chains []filteringChain
	err := queryNFT(unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, unix.NFPROTO_UNSPEC, unix.NLM_F_DUMP,
		func(m nftMessage) {
			if policy := m.attribute(unix.NFTA_CHAIN_POLICY); policy == nil || m.number(unix.NFTA_CHAIN_POLICY) != nfDrop {
				return
			}
			_, has4 := d.local(true)
			_, has6 := d.local(false)
			switch m.family {
			case unix.NFPROTO_INET:
			case unix.NFPROTO_IPV4:
				if !has4 {
					return
				}
			case unix.NFPROTO_IPV6:
				if !has6 {
					return
				}
			default:
				return
			}
			for kind, value := range attributes(m.attribute(unix.NFTA_CHAIN_HOOK)) {
				if kind == unix.NFTA_HOOK_HOOKNUM && len(value) == 4 &&
					binary.BigEndian.Uint32(value) == unix.NF_INET_FORWARD {
					chains = append(chains, filteringChain{m.family, m.tableOf(), m.text(unix.NFTA_CHAIN_NAME)})
				}
			}
		})
	if err != nil || len(chains) == 0 {
		return err
	}
	name := append([]byte(d.Gateway), 0)
	err = queryNFT(unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, unix.NFPROTO_UNSPEC, unix.NLM_F_DUMP, func(m nftMessage) {
		if bytes.Contains(m.attribute(unix.NFTA_RULE_EXPRESSIONS), name) {
			chains = slices.DeleteFunc(chains, func(c filteringChain) bool {
				return c.family == m.family && c.table == m.tableOf()
			})
		}
	})
	errs := []error{err}
	for _, c := range chains {
		errs = append(errs, fmt.Errorf("nftables chain %s drops forwarded packets by policy, and no rule of its table names "+
			"%[2]s: pods reach nothing outside and clients outside reach no node port, unless another rule accepts them; "+
			"accept packets from and to %[2]s there", c, d.Gateway))
	}
	return errors.Join(errs...)
}
