package flows

import (
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// What the switch has learned for a Service ends with what it was learned from: with the Service, with its affinity and
// with the endpoint. Otherwise it would stay for as long as the affinity's timeout, and count against maxClients.

// Volatile says that a flow comes and goes by itself: one that the switch has learned (see forget), or the one that the
// agent renews while it learns names.
func Volatile(table openflow.TableID, actions openflow.Actions) bool {
	return table == Affinity || table == AnswerGate && actions == toAnswerHold
}

var toAnswerHold = func() openflow.Actions {
	actions, err := openflow.NewActions(openflow.Goto(AnswerHold))
	if err != nil {
		panic(err)
	}
	return actions
}()

// affinityOf is the idle timeout of what a Service's flows make the switch learn; false when they make it learn
// nothing.
func affinityOf(list []Flow) (uint16, bool) {
	for _, f := range list {
		if f.Table != StickyEndpoint {
			continue
		}
		if l, ok := f.Actions.Learned(); ok {
			return l.IdleTimeout, true
		}
	}
	return 0, false
}

// allLearned stands for everything that the switch has learned for an owner.
func allLearned(o model.Owner, cookie uint64) Flow {
	return Flow{Owner: o, Flow: openflow.Flow{Key: openflow.Key{Table: Affinity}, Cookie: cookie}}
}

// forget finds what the switch has learned and would learn no more. What comes between the reading and the deletion is
// spared, unless nothing more is learned with its cookie.
func forget(actual []openflow.Entry, desired Desired) (list []Flow) {
	type learned struct {
		cookie uint64
		openflow.Learned
	}
	var learns map[learned]bool
	var cookies map[uint64]bool // true where the switch still learns, false where all was noted
	for _, e := range actual {
		if e.Table != Affinity || !Ours(e.Cookie) {
			continue
		}
		if learns == nil { // most nodes have no such flow
			learns, cookies = map[learned]bool{}, map[uint64]bool{}
			for key, f := range desired.Flows {
				if key.Table != StickyEndpoint {
					continue
				}
				if l, ok := f.Actions.Learned(); ok {
					learns[learned{f.Cookie, l}], cookies[f.Cookie] = true, true
				}
			}
		}
		switch more, noted := cookies[e.Cookie]; {
		case !noted:
			cookies[e.Cookie] = false
			list = append(list, allLearned(model.Owner{}, e.Cookie))
		case more && !learns[learned{e.Cookie, openflow.Learned{Actions: e.Actions, IdleTimeout: e.IdleTimeout}}]:
			list = append(list, Flow{Flow: e.Flow})
		}
	}
	return list
}
