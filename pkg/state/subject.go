package state

// subject is an object or a setting.
type subject struct{ kind, namespace, name string }

// Subject identifies the object or setting that a change is about. Of two changes with one subject the later alone says all
// that the store has to know, so the earlier need not be applied. It is nil for attachments,
// whose changes are all applied: a CNI request waits for each.
func Subject(c Change) any {
	switch c := c.(type) {
	case SetNode:
		return subject{"node", "", c.Node.Name}
	case DeleteNode:
		return subject{"node", "", c.Name}
	case SetPod:
		return subject{"pod", c.Pod.Namespace, c.Pod.Name}
	case DeletePod:
		return subject{"pod", c.Namespace, c.Name}
	case SetNamespace:
		return subject{"namespace", "", c.Namespace.Name}
	case DeleteNamespace:
		return subject{"namespace", "", c.Name}
	case SetPolicy:
		return subject{"policy", c.Policy.Namespace, c.Policy.Name}
	case DeletePolicy:
		return subject{"policy", c.Namespace, c.Name}
	case SetService:
		return subject{"service", "", c.Service.Name}
	case DeleteService:
		return subject{"service", "", c.Name}
	case SetServiceCIDRs:
		if c.Configured {
			return subject{kind: "configured Service CIDRs"}
		}
		return subject{kind: "Service CIDRs"}
	case SetClusterCIDRs:
		return subject{kind: "cluster CIDRs"}
	case SetTunnel:
		return subject{kind: "tunnel"}
	case SetKernelDatapath:
		return subject{kind: "datapath"}
	case SetKeepEstablished:
		return subject{kind: "established connections"}
	case SetTime:
		return subject{kind: "time"}
	}
	return nil
}
