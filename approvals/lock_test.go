package approvals

import (
	"testing"
	"time"

	"countersign/action"
)

// A lock is about what all that it names fits; what it does not name is all of it.
func TestLockHalts(t *testing.T) {
	caller := &action.Principal{Username: "bot@example.com", Subject: "1234", OnBehalfOf: "anna@example.com"}
	pods := func(cluster, namespace string) []action.Action {
		return []action.Action{{Cluster: cluster, Namespace: namespace, Resource: action.Resource{Resource: "pods", Namespaced: true}}}
	}
	object := func(resource, name string) []action.Action {
		return []action.Action{{Cluster: "east", Name: name, Resource: action.Resource{Resource: resource}}}
	}
	for _, row := range []struct {
		name    string
		lock    Lock
		actions []action.Action
		want    bool
	}{
		{"everything", Lock{}, pods("east", "shop"), true},
		{"everything, before it is known what it is about", Lock{}, nil, true},
		{"the caller", Lock{Principal: "bot@example.com"}, nil, true},
		{"the caller in other letters", Lock{Principal: "BOT@example.com"}, nil, true},
		{"the caller's subject", Lock{Principal: "1234"}, nil, true},
		{"for whom it acts", Lock{Principal: "anna@example.com"}, nil, true},
		{"somebody else", Lock{Principal: "bot"}, pods("east", "shop"), false},
		{"the tool", Lock{Tool: "scale"}, nil, true},
		{"another tool", Lock{Tool: "scal"}, pods("east", "shop"), false},
		{"the caller and another tool", Lock{Principal: "1234", Tool: "x"}, pods("east", "shop"), false},
		{"the cluster", Lock{Cluster: "east"}, pods("east", "shop"), true},
		{"another cluster", Lock{Cluster: "west"}, pods("east", "shop"), false},
		{"one of several requests", Lock{Cluster: "west"}, append(pods("east", "shop"), pods("west", "shop")...), true},
		{"the namespace", Lock{Namespace: "shop"}, pods("east", "shop"), true},
		{"another namespace", Lock{Namespace: "shop"}, pods("east", "shop-2"), false},
		{"the namespace of another cluster", Lock{Cluster: "west", Namespace: "shop"}, append(pods("east", "shop"), pods("west", "other")...), false},
		{"all namespaces", Lock{Namespace: "shop"}, pods("east", ""), true},
		{"the namespace itself", Lock{Namespace: "shop"}, object("namespaces", "shop"), true},
		{"another namespace itself", Lock{Namespace: "shop"}, object("namespaces", "other"), false},
		{"all namespaces themselves", Lock{Namespace: "shop"}, object("namespaces", ""), false},
		{"what is in no namespace", Lock{Namespace: "shop"}, object("nodes", "shop"), false},
		{"a namespace, before it is known what it is about", Lock{Namespace: "shop"}, nil, false},
	} {
		if got := row.lock.Halts(caller, "scale", row.actions); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

func TestLockHolds(t *testing.T) {
	for lock, want := range map[Lock]bool{{}: true, {Expires: noon.Add(time.Second)}: true, {Expires: noon}: false, {Expires: noon.Add(-time.Hour)}: false} {
		if got := lock.Holds(noon); got != want {
			t.Errorf("%+v: %v", lock, got)
		}
	}
}
