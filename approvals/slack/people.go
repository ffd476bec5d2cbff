package slack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	slackgo "github.com/slack-go/slack"

	"countersign/approvals"
)

// person is who a Slack user is now, with the approver sets among these that the
// user is in. It is asked at each decision and never kept: people leave, and
// become guests.
func (s *Slack) person(ctx context.Context, id string, sets []string) (approvals.Person, error) {
	me, err := s.whoami(ctx)
	if err != nil {
		return approvals.Person{}, err
	}
	user, err := retry(ctx, func() (*slackgo.User, error) { return s.api.GetUserInfoContext(ctx, id) })
	if err != nil {
		return approvals.Person{}, fmt.Errorf("asking Slack who %s is (users.info): %w", id, err)
	}
	name := cmp.Or(user.RealName, user.Profile.DisplayName, user.Name, id)
	if why := barred(user, id, me); why != "" {
		// Its groups are not asked for: guests must not use up what Slack lets us ask.
		return approvals.Person{ID: "slack:" + me.team + "/" + id, Name: name, Barred: why}, nil
	}
	accounts := []string{"slack:" + id}
	for _, group := range s.People.Members(sets, "slackgroup:") {
		members, err := retry(ctx, func() ([]string, error) { return s.api.GetUserGroupMembersContext(ctx, group) })
		var refused slackgo.SlackErrorResponse
		if errors.As(err, &refused) && !transient(refused.Err) && refused.Err != "missing_scope" {
			// A group that is gone or switched off has no members; others may still decide.
			s.Log.Error("a user group of the configuration cannot be read", "group", group, "err", refused.Err)
			s.note(fmt.Errorf("user group %s: %w", group, err))
			continue
		}
		if err != nil {
			return approvals.Person{}, fmt.Errorf("asking Slack who is in the user group %s (usergroups.users.list): %w", group, err)
		}
		if slices.Contains(members, id) {
			accounts = append(accounts, "slackgroup:"+group)
		}
	}
	// An address that nobody has confirmed, or that people can edit, makes nobody
	// an approver; but whoever has the address of the person for whom an agent
	// acts is taken for that person.
	var also []string
	if email := user.Profile.Email; email != "" {
		if also = []string{"email:" + email}; s.MatchEmail && user.IsEmailConfirmed {
			accounts = append(accounts, also...)
		}
	}
	return s.People.Person("slack:"+me.team+"/"+id, name, accounts, also...), nil
}

// barred is why a user may not decide anything, whatever sets say.
func barred(user *slackgo.User, id string, me self) string {
	ours := user.TeamID == me.team || me.enterprise != "" && user.Enterprise.EnterpriseID == me.enterprise
	switch {
	case user.ID != id:
		return "Slack answered about somebody else"
	case user.IsStranger || !ours:
		return "the account belongs to another workspace"
	case user.Deleted:
		return "the account is deactivated"
	case user.IsBot || user.IsAppUser || user.IsWorkflowBot || user.IsConnectorBot || id == "USLACKBOT":
		return "an app is not a person"
	case user.IsRestricted || user.IsUltraRestricted:
		return "guests do not decide"
	case user.IsInvitedUser:
		return "the account has not joined yet"
	}
	return ""
}

// userOf finds the Slack user of the person on whose behalf an agent acts; empty
// when nothing says who that is.
func (s *Slack) userOf(ctx context.Context, principal string) (string, error) {
	if linked := s.People.Linked(principal, "slack:"); len(linked) > 0 {
		return linked[0], nil
	}
	if !s.MatchEmail || !strings.Contains(principal, "@") {
		return "", nil
	}
	user, err := s.api.GetUserByEmailContext(ctx, principal)
	var refused slackgo.SlackErrorResponse
	if errors.As(err, &refused) && !transient(refused.Err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("asking Slack for a user by e-mail (users.lookupByEmail): %w", err)
	}
	return user.ID, nil
}
