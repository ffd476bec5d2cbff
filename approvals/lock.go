package approvals

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/action"
)

// Lock halts calls, whatever policy says and whoever has agreed to them. What is
// empty in it matches everything; a Lock of which all is empty halts every call.
type Lock struct {
	ID string `json:"id"`
	// Principal is a user name, a subject or a client, or for whom an agent acts.
	Principal string `json:"principal,omitempty"`
	Tool      string `json:"tool,omitempty"`
	Cluster   string `json:"cluster,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Reason    string `json:"reason"`
	// By is who set it.
	By      string    `json:"by"`
	Created time.Time `json:"created"`
	// Expires is when it ends by itself; zero is never.
	Expires time.Time `json:"expires,omitzero"`
}

// Holds reports whether the lock has not ended.
func (l Lock) Holds(now time.Time) bool { return l.Expires.IsZero() || now.Before(l.Expires) }

// Halts reports whether the lock is about any of the requests of a call. Without
// requests, which is before they are known, it is so only where nothing that is
// not known matters.
func (l Lock) Halts(p *action.Principal, tool string, actions []action.Action) bool {
	if l.Principal != "" && !slices.ContainsFunc([]string{p.Username, p.Subject, p.Client, p.OnBehalfOf}, func(name string) bool { return strings.EqualFold(l.Principal, name) }) {
		return false
	}
	if l.Tool != "" && l.Tool != tool {
		return false
	}
	if l.Cluster == "" && l.Namespace == "" {
		return true
	}
	return slices.ContainsFunc(actions, func(a action.Action) bool {
		namespace := a.Namespace
		if a.Resource.GroupResource() == "namespaces" {
			namespace = a.Name
		}
		// A request to all namespaces reaches the locked one, too.
		return (l.Cluster == "" || l.Cluster == a.Cluster) &&
			(l.Namespace == "" || l.Namespace == namespace || namespace == "" && a.Resource.Namespaced)
	})
}

// What says what the lock halts.
func (l Lock) What() string {
	var parts []string
	for _, p := range []struct{ name, value string }{{"principal", l.Principal}, {"tool", l.Tool}, {"cluster", l.Cluster}, {"namespace", l.Namespace}} {
		if p.value != "" {
			parts = append(parts, p.name+" "+p.value)
		}
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, ", ")
}

// Until says when the lock ends.
func (l Lock) Until() string {
	if l.Expires.IsZero() {
		return "until the lock is removed"
	}
	return "until " + l.Expires.UTC().Format(time.RFC3339)
}

// Text is what a halted agent and an approver are told.
func (l Lock) Text() string {
	return fmt.Sprintf("%s is locked %s: %s", l.What(), l.Until(), l.Reason)
}
