package gate

import (
	"errors"
	"fmt"
	"slices"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
)

// granted finds a grant under which an operation, filled in as a question, may
// run without being asked; nil when there is none.
func (g *Gate) granted(op approvals.Operation) (*approvals.Grant, error) {
	if op.GrantFor == 0 {
		return nil, nil
	}
	grants, err := g.Store.Grants()
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(grants, func(grant approvals.Grant) bool { return grant.Covers(op, g.Now()) })
	if at < 0 {
		return nil, nil
	}
	return &grants[at], nil
}

// stillAllowed says whether what an allowed change would do now, with the
// object as it is now, is still allowed: by policy, or by the grant it runs under.
func (g *Gate) stillAllowed(c *call, op approvals.Operation, previews []action.Preview) error {
	c.asked.Previews, c.asked.Now = previews, g.Now()
	d := g.decide(c.policy, &c.asked)
	if d.Effect == policy.RequireApproval && op.Grant != "" {
		fresh, err := g.question(op, c.policy, &c.asked, d)
		if err != nil {
			return err
		}
		grant, err := g.granted(fresh)
		if err == nil && grant != nil {
			return nil
		}
		return errors.Join(errors.New("the grant does not cover what would change now"), err)
	}
	if d.Effect != policy.Allow {
		return errors.New(d.Reason)
	}
	return nil
}

// grantEntry records that a grant was given or taken back.
func (g *Gate) grantEntry(recordType string, grant approvals.Grant) Entry {
	r := g.record(recordType, grant.Op, grant.Principal, "", grant.Tool)
	r.Outcome = audit.Success
	r.Approval = &audit.Approval{Grant: grant.ID, By: grant.By(), Expires: grant.Expires.UTC()}
	for _, k := range grant.Kinds {
		r.Actions = append(r.Actions, audit.Action{
			Cluster: k.Cluster, Verb: k.Verb, Resource: k.Resource.Path(), Subresource: k.Subresource, Patch: k.Patch.Short(), Namespace: k.Namespace,
		})
		r.Approval.Fields = append(r.Approval.Fields, k.Fields...)
	}
	return withPayload(r, grant.Kinds)
}

// Grants lists the grants that hold, and those taken back before their end.
func (g *Gate) Grants() ([]approvals.Grant, error) {
	grants, err := g.Store.Grants()
	return slices.DeleteFunc(grants, func(grant approvals.Grant) bool { return !g.Now().Before(grant.Expires) }), err
}

// forgetGrants forgets those that ended: the log keeps them.
func (g *Gate) forgetGrants() error {
	grants, err := g.Store.Grants()
	if err != nil {
		return err
	}
	var ended []string
	for _, grant := range grants {
		if !g.Now().Before(grant.Expires) {
			ended = append(ended, grant.ID)
		}
	}
	if len(ended) == 0 {
		return nil
	}
	return g.commit(Batch{EndedGrants: ended})
}

// RevokeGrant takes a grant back: nothing starts under it any more. What has
// started goes on.
func (g *Gate) RevokeGrant(id string, by approvals.Person, reason string) (approvals.Grant, error) {
	for {
		grants, err := g.Grants()
		if err != nil {
			return approvals.Grant{}, err
		}
		at := slices.IndexFunc(grants, func(grant approvals.Grant) bool { return grant.ID == id })
		if at < 0 {
			return approvals.Grant{}, fmt.Errorf("grant %s: %w; countersign grants list shows those that hold", id, ErrNotFound)
		}
		grant := grants[at]
		if grant.Revoked != "" {
			return grant, nil
		}
		grant.Revision++
		grant.Revoked = by.String()
		entry := g.grantEntry(audit.GrantRevoked, grant)
		entry.Record.Approval.By, entry.Record.Approval.Reason = []string{by.String()}, audit.MaskText(clip(reason))
		err = g.commit(Batch{Entries: []Entry{entry}, Grants: []approvals.Grant{grant}})
		if errors.Is(err, ErrConflict) {
			continue // it was used at the same time
		}
		return grant, err
	}
}
