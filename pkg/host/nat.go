package host

import (
	"context"
	"fmt"

	"sigs.k8s.io/knftables"
)

const tableName = "weft"

// nat writes the nftables table. nft prints a rule in another form than it was written, so rules are compared by their
// comments, which hold a hash of the rule, and the kernel's form of the table by a hash that is stored in the table
// (see layout).
//
// It remembers what it wrote: listing 10,000 elements takes nft a hundred times longer than writing one.
type nat struct {
	nft         knftables.Interface
	generations generations
	// layout reads the kernel's form of the table; nil with knftables' fake, which has none.
	layout func() (layout, error)
	// rules are the installed rules, as text of rulesText; empty while these or the elements are not known.
	rules    string
	elements []*tracker[element, struct{}] // of each set
	// removed are the translations that writes have removed since the last Sync took them.
	removed removedTranslations
}

func newNAT(nft knftables.Interface, layout func() (layout, error)) *nat {
	n := &nat{nft: nft, layout: layout}
	for range sets {
		n.elements = append(n.elements, newTracker[element, struct{}](compareElements))
	}
	return n
}

// sync writes elements or, when anything else differs, the whole table. Either is one transaction; connections keep
// their NAT. With compare, or when its memory is not reliable, it reads the kernel's state first.
func (n *nat) sync(ctx context.Context, c *changes, d Desired, compare bool) error {
	rules := rules(d)
	want := rulesText(rules)
	for i, s := range sets {
		list := s.elements(d, s.is4)
		entries := make([]entry[element, struct{}], len(list))
		for j, e := range list {
			entries[j].key = e
		}
		n.elements[i].desire(entries)
	}
	if !compare && n.rules == want && n.writeDifference(ctx, c) == nil {
		return nil
	}
	n.rules = "" // perhaps another program changed the table
	have, err := n.listRules(ctx, "")
	inSync := have == want
	if inSync && err == nil {
		inSync, err = n.layoutUnchanged()
	}
	if inSync && err == nil {
		inSync, err = n.learnElements(ctx)
	}
	switch {
	case err != nil:
	case inSync:
		err = n.writeDifference(ctx, c)
	default:
		err = n.writeTable(ctx, c, rules)
		if err == nil && masquerades(have) && !masquerades(want) {
			n.removed.direct = append(n.removed.direct, everywhere...)
		}
	}
	if err == nil {
		n.rules = want
	}
	return err
}

// listRules are the rules of a chain, or of all, as text of rulesText.
func (n *nat) listRules(ctx context.Context, chain string) (string, error) {
	have, err := n.nft.ListRules(ctx, chain)
	if err != nil && !knftables.IsNotFound(err) {
		return "", fmt.Errorf("list rules of nftables table %s: %w", tableName, err)
	}
	return rulesText(have), nil
}

// rulesText are the comments of all rules by chain, as nft lists chains in any order.
func rulesText(rules []*knftables.Rule) string {
	chains := map[string]string{}
	for _, r := range rules {
		comment := "foreign"
		if r.Comment != nil {
			comment = *r.Comment
		}
		chains[r.Chain] += comment + "\n"
	}
	return fmt.Sprint(chains) // sorted
}

// run runs a transaction and records its generation.
func (n *nat) run(ctx context.Context, tx *knftables.Transaction) error {
	if n.layout == nil {
		return n.nft.Run(ctx, tx)
	}
	return n.generations.run(func() error { return n.nft.Run(ctx, tx) })
}

// layoutUnchanged reports whether chains, sets and rules are as written by this agent or an earlier one.
func (n *nat) layoutUnchanged() (bool, error) {
	if n.layout == nil {
		return true, nil
	}
	now, err := n.layout()
	return err == nil && !now.disabled && now.sum == now.written, err
}

// recordLayout stores the hash of the written table in the table.
func (n *nat) recordLayout(ctx context.Context) error {
	if n.layout == nil {
		return nil
	}
	now, err := n.layout()
	if err != nil {
		return err
	}
	tx := n.nft.NewTransaction()
	tx.Add(&knftables.Chain{Name: writtenPrefix + now.sum})
	if err := n.run(ctx, tx); err != nil {
		return fmt.Errorf("record the hash of nftables table %s: %w", tableName, err)
	}
	return nil
}

// learnElements reads the elements of all sets. It returns false when a set is missing or has elements that Weft never
// writes.
func (n *nat) learnElements(ctx context.Context) (bool, error) {
	for i, s := range sets {
		have, err := n.nft.ListElements(ctx, s.kind(), s.name)
		if knftables.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list nftables %s %s %s: %w", s.kind(), tableName, s.name, err)
		}
		elements := make(map[element]struct{}, len(have))
		for _, k := range have {
			e, ok := s.parse(k)
			if !ok {
				return false, nil
			}
			elements[e] = struct{}{}
		}
		n.elements[i].learn(elements)
	}
	return true, nil
}

// writeDifference adds and deletes single elements.
func (n *nat) writeDifference(ctx context.Context, c *changes) error {
	tx := n.nft.NewTransaction()
	var done changes
	for i, s := range sets {
		// Delete first: a range may replace others, and a key may get another value.
		for _, e := range n.elements[i].stale() {
			tx.Delete(s.element(e.key))
			done.add("nftables %s %s: %s removed", s.kind(), s.name, e.key)
		}
		for _, e := range n.elements[i].missing() {
			tx.Add(s.element(e.key))
			done.add("nftables %s %s: %s added", s.kind(), s.name, e.key)
		}
	}
	if tx.NumOperations() > 0 {
		if err := n.run(ctx, tx); err != nil {
			return fmt.Errorf("change nftables table %s: %w", tableName, err)
		}
	}
	c.list = append(c.list, done.list...)
	n.written()
	return nil
}

// written records that the desired elements are installed, and the translations that the deleted elements made. These
// are unknown when a new agent finds another version's rules.
func (n *nat) written() {
	for i, s := range sets {
		if t := n.elements[i]; t.known && !t.inSync() && s.removed != nil {
			n.removed.add(s.removed(keys(t.stale()), keys(t.missing())))
		}
		n.elements[i].written()
	}
}

func (n *nat) writeTable(ctx context.Context, c *changes, rules []*knftables.Rule) error {
	tx := n.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Weft pod network; rewritten when changed")})
	for i, s := range sets {
		tx.Add(s.object())
		for _, e := range n.elements[i].list {
			tx.Add(s.element(e.key))
		}
	}
	for _, chain := range chains {
		tx.Add(&chain)
	}
	for _, r := range rules {
		tx.Add(r)
	}
	if err := n.run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table %s: %w", tableName, err)
	}
	c.add("nftables table %s written", tableName)
	n.written()
	return n.recordLayout(ctx)
}
