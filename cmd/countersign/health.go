package main

import (
	"context"
	"errors"
	"fmt"

	"countersign/gate"
	"countersign/identity"
	"countersign/kube"
	"countersign/storage"
)

// health says whether the server can serve: the audit log takes records, one
// cluster at least answers, and the keys of one issuer at least are known. It
// serves with the rest down, and says so; countersign status has names and causes,
// which are not for whoever can reach the address, nor is the policy's digest: those
// of the policies that we publish are known. Policy is there from the start.
func health(store *storage.Store, clusters *kube.Clusters, authenticator *identity.Authenticator, issuers int) func(context.Context) (bool, string) {
	return func(ctx context.Context) (bool, string) {
		log := "writable"
		broken := store.Room()
		if errors.Is(broken, gate.ErrFull) {
			log = "full"
		} else if broken != nil {
			log = "takes no records"
		}
		reachable := 0
		all := clusters.Status(ctx)
		for _, c := range all {
			if c.Reachable {
				reachable++
			}
		}
		known := issuers - len(authenticator.Unready(ctx))
		return broken == nil && reachable > 0 && known > 0, fmt.Sprintf(
			"audit log: %s\npolicy: loaded\nclusters: %d of %d reachable\nissuers: keys of %d of %d known\n",
			log, reachable, len(all), known, issuers)
	}
}
