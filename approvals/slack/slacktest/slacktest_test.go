package slacktest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slack-go/slack"
	"github.com/slack-go/slack/socketmode"

	"countersign/approvals/slack/slacktest"
)

const (
	room = "C01"
	ana  = "U01"
	ben  = "U02"
)

func start(t *testing.T) (*slacktest.Server, *slack.Client) {
	t.Helper()
	s, err := slacktest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.AddChannel(slacktest.Channel{ID: room, Name: "changes"})
	s.AddUser(slacktest.User{ID: ana, RealName: "Ana", Email: "ana@example.com"})
	s.AddUser(slacktest.User{ID: ben, RealName: "Ben", Email: "ben@example.com", IsRestricted: true})
	return s, client(s)
}

func client(s *slacktest.Server, options ...slack.Option) *slack.Client {
	return slack.New(s.BotToken, append([]slack.Option{
		slack.OptionAPIURL(s.URL), slack.OptionAppLevelToken(s.AppToken),
	}, options...)...)
}

func plain(text string) *slack.TextBlockObject {
	return slack.NewTextBlockObject(slack.PlainTextType, text, false, false)
}

func section(text string) slack.Block { return slack.NewSectionBlock(plain(text), nil, nil) }

func buttons() slack.Block {
	return slack.NewActionBlock("decide",
		slack.NewButtonBlockElement("approve", "op-1", plain("Approve")).WithStyle(slack.StylePrimary),
		slack.NewButtonBlockElement("reject", "op-1", plain("Reject")))
}

func form() slack.ModalViewRequest {
	input := slack.NewInputBlock("reason", plain("Reason"), nil,
		slack.NewPlainTextInputBlockElement(plain("why"), "text"))
	return slack.ModalViewRequest{Type: slack.VTModal, Title: plain("Reject"), Submit: plain("Reject"),
		CallbackID: "reject", PrivateMetadata: "op-1", Blocks: slack.Blocks{BlockSet: []slack.Block{section("Sure?"), input}}}
}

func wantError(t *testing.T, err error, name string) slack.SlackErrorResponse {
	t.Helper()
	var e slack.SlackErrorResponse
	if !errors.As(err, &e) || e.Err != name {
		t.Fatalf("error %v, want %s", err, name)
	}
	return e
}

// run connects a Socket Mode client that answers every interaction with handle's result.
func run(t *testing.T, s *slacktest.Server, handle func(slack.InteractionCallback) any) {
	t.Helper()
	before := s.Connections()
	ctx, cancel := context.WithCancel(context.Background())
	sm := socketmode.New(client(s))
	var wg sync.WaitGroup
	wg.Go(func() { _ = sm.RunContext(ctx) })
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-sm.Events:
				if c, ok := e.Data.(slack.InteractionCallback); ok {
					if answer := handle(c); answer != nil {
						_ = sm.AckCtx(ctx, e.Request.EnvelopeID, answer)
					}
				}
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	if !s.Await(5*time.Second, func() bool { return s.Connections() > before }) {
		t.Fatal("no connection")
	}
}

// nothing is an acknowledgement without a payload.
var nothing = struct{}{}

func TestIdentity(t *testing.T) {
	s, c := start(t)
	who, err := c.AuthTest()
	if err != nil {
		t.Fatal(err)
	}
	bot, err := c.GetBotInfo(slack.GetBotInfoParameters{Bot: who.BotID})
	if err != nil {
		t.Fatal(err)
	}
	if who.TeamID != s.TeamID || who.UserID != s.BotUserID || bot.AppID != s.AppID {
		t.Errorf("%+v %+v", who, bot)
	}
	_, err = slack.New("xoxb-wrong", slack.OptionAPIURL(s.URL)).AuthTest()
	wantError(t, err, "invalid_auth")
	_, _, err = slack.New(s.BotToken, slack.OptionAPIURL(s.URL), slack.OptionAppLevelToken(s.BotToken)).
		StartSocketModeContext(t.Context())
	wantError(t, err, "invalid_auth")
}

func TestPeople(t *testing.T) {
	s, c := start(t)
	s.AddUser(slacktest.User{ID: "U03", TeamID: "T0OTHER", IsStranger: true, EnterpriseID: "E01", EmailUnconfirmed: true})
	s.SetGroup("S01", ana)
	b, err := c.GetUserInfo(ben)
	if err != nil || !b.IsRestricted || b.Profile.Email != "ben@example.com" || !b.IsEmailConfirmed || b.TeamID != s.TeamID {
		t.Errorf("%+v %v", b, err)
	}
	u, err := c.GetUserInfo("U03")
	if err != nil || !u.IsStranger || u.TeamID != "T0OTHER" || u.Enterprise.EnterpriseID != "E01" || u.IsEmailConfirmed {
		t.Errorf("%+v %v", u, err)
	}
	_, err = c.GetUserInfo("U99")
	wantError(t, err, "user_not_found")
	if u, err := c.GetUserByEmail("ANA@example.com"); err != nil || u.ID != ana {
		t.Errorf("%+v %v", u, err)
	}
	_, err = c.GetUserByEmail("nobody@example.com")
	wantError(t, err, "users_not_found")
	if in, err := c.GetUserGroupMembers("S01"); err != nil || !slices.Equal(in, []string{ana}) {
		t.Errorf("%v %v", in, err)
	}
	_, err = c.GetUserGroupMembers("S99")
	wantError(t, err, "no_such_subteam")
	s.RevokeScope("usergroups:read")
	_, err = c.GetUserGroupMembers("S01")
	if e := wantError(t, err, "missing_scope"); e.Needed != "usergroups:read" {
		t.Errorf("needed %q", e.Needed)
	}
}

func TestMessages(t *testing.T) {
	s, c := start(t)
	meta := slack.SlackMetadata{EventType: "operation", EventPayload: map[string]any{"id": "op-1"}}
	_, ts, err := c.PostMessage(room, slack.MsgOptionText("a change", false),
		slack.MsgOptionBlocks(section("a change"), buttons()), slack.MsgOptionMetadata(meta))
	if err != nil {
		t.Fatal(err)
	}
	_, reply, err := c.PostMessage(room, slack.MsgOptionText("by ana", false), slack.MsgOptionTS(ts))
	if err != nil || reply <= ts {
		t.Fatal(reply, err)
	}
	// What an update does not give stays.
	if _, _, _, err := c.UpdateMessage(room, ts, slack.MsgOptionText("approved", false),
		slack.MsgOptionBlocks(section("approved"))); err != nil {
		t.Fatal(err)
	}
	got := s.Messages(room)
	if len(got) != 1 || got[0].Rendered() != "approved\n" || got[0].Edits != 1 || len(got[0].Replies) != 1 ||
		slacktest.Text(got[0].Versions[0].Blocks) != "a change\n[Approve] [Reject]\n" || !strings.Contains(string(got[0].Metadata), "op-1") {
		t.Errorf("%+v", got)
	}
	h, err := c.GetConversationHistory(&slack.GetConversationHistoryParameters{ChannelID: room, IncludeAllMetadata: true})
	if err != nil || len(h.Messages) != 1 || h.Messages[0].Metadata.EventPayload["id"] != "op-1" || h.Messages[0].ReplyCount != 1 ||
		h.Messages[0].BotID != s.BotID || h.Messages[0].Edited == nil {
		t.Errorf("%+v %v", h, err)
	}
	thread, _, _, err := c.GetConversationReplies(&slack.GetConversationRepliesParameters{ChannelID: room, Timestamp: ts})
	if err != nil || len(thread) != 2 || thread[1].ThreadTimestamp != ts {
		t.Errorf("%+v %v", thread, err)
	}

	theirs := s.Post(ana, room, "", "hello")
	_, _, _, err = c.UpdateMessage(room, theirs, slack.MsgOptionText("x", false))
	wantError(t, err, "cant_update_message")
	s.Delete(room, ts)
	_, _, _, err = c.UpdateMessage(room, ts, slack.MsgOptionText("x", false))
	wantError(t, err, "message_not_found")
	_, _, err = c.PostMessage("C99", slack.MsgOptionText("x", false))
	wantError(t, err, "channel_not_found")
	s.AddChannel(slacktest.Channel{ID: "C02", Without: true})
	_, _, err = c.PostMessage("C02", slack.MsgOptionText("x", false))
	wantError(t, err, "not_in_channel")
	s.AddChannel(slacktest.Channel{ID: room, Archived: true})
	_, _, err = c.PostMessage(room, slack.MsgOptionText("x", false))
	wantError(t, err, "is_archived")
}

func TestHistoryPages(t *testing.T) {
	_, c := start(t)
	var all []string
	for range 5 {
		_, ts, err := c.PostMessage(room, slack.MsgOptionText("x", false))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ts)
	}
	var got []string
	p := &slack.GetConversationHistoryParameters{ChannelID: room, Limit: 2, Oldest: all[0]}
	for {
		h, err := c.GetConversationHistory(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range h.Messages {
			got = append(got, m.Timestamp)
		}
		if !h.HasMore {
			break
		}
		p.Cursor = h.ResponseMetaData.NextCursor
	}
	slices.Reverse(got)
	if !slices.Equal(got, all[1:]) {
		t.Errorf("got %v of %v", got, all)
	}
}

func TestDirectAndEphemeral(t *testing.T) {
	s, c := start(t)
	ch, _, _, err := c.OpenConversation(&slack.OpenConversationParameters{Users: []string{ana}, ReturnIM: true})
	if err != nil || !ch.IsIM {
		t.Fatal(ch, err)
	}
	if _, _, err := c.PostMessage(ch.ID, slack.MsgOptionText("hi", false)); err != nil {
		t.Fatal(err)
	}
	if dms := s.DMs(ana); len(dms) != 1 || dms[0].Text != "hi" {
		t.Errorf("%+v", dms)
	}
	if _, err := c.PostEphemeral(room, ana, slack.MsgOptionText("already decided", false)); err != nil {
		t.Fatal(err)
	}
	if e := s.Ephemerals(room, ana); len(e) != 1 || e[0].Rendered() != "already decided\n" || len(s.Ephemerals(room, ben)) != 0 {
		t.Errorf("%+v", e)
	}
	s.AddChannel(slacktest.Channel{ID: room, Members: []string{ana}})
	_, err = c.PostEphemeral(room, ben, slack.MsgOptionText("x", false))
	wantError(t, err, "user_not_in_channel")
}

func TestLimits(t *testing.T) {
	_, c := start(t)
	long := func(n int) string { return strings.Repeat("x", n) }
	button := func(text, value, action string) slack.Block {
		return slack.NewActionBlock("b", slack.NewButtonBlockElement(action, value, plain(text)))
	}
	many := func(n int) (out []slack.Block) {
		for range n {
			out = append(out, slack.NewDividerBlock())
		}
		return out
	}
	rich := func(e ...slack.RichTextElement) slack.Block { return slack.NewRichTextBlock("", e...) }
	code := func(text string) slack.RichTextElement {
		return &slack.RichTextPreformatted{Type: slack.RTEPreformatted, Language: "diff",
			Elements: []slack.RichTextSectionElement{slack.NewRichTextSectionTextElement(text, nil)}}
	}
	fields := func(n, size int) slack.Block {
		var f []*slack.TextBlockObject
		for range n {
			f = append(f, plain(long(size)))
		}
		return slack.NewSectionBlock(nil, f, nil)
	}
	confirm := func(text string) slack.Block {
		b := slack.NewButtonBlockElement("a", "v", plain("Go"))
		b.Confirm = slack.NewConfirmationBlockObject(plain("Sure?"), plain(text), plain("Yes"), plain("No"))
		return slack.NewActionBlock("b", b)
	}
	for name, tc := range map[string]struct {
		blocks []slack.Block
		want   string
		at     string
	}{
		"3000 characters":    {[]slack.Block{section(long(3000))}, "", ""},
		"3001 characters":    {[]slack.Block{section(long(3001))}, "invalid_blocks", "must be less than 3001 characters [json-pointer:/blocks/0/text/text]"},
		"empty text":         {[]slack.Block{section("")}, "invalid_blocks", "/blocks/0/text/text"},
		"50 blocks":          {many(50), "", ""},
		"51 blocks":          {many(51), "invalid_blocks", "/blocks]"},
		"header":             {[]slack.Block{slack.NewHeaderBlock(plain(long(151)))}, "invalid_blocks", "/blocks/0/text/text"},
		"ten fields":         {[]slack.Block{fields(10, 100)}, "", ""},
		"eleven fields":      {[]slack.Block{fields(11, 1)}, "invalid_blocks", "/blocks/0/fields"},
		"long field":         {[]slack.Block{fields(1, 2001)}, "invalid_blocks", "/blocks/0/fields/0/text"},
		"button":             {[]slack.Block{button(long(75), long(2000), long(255))}, "", ""},
		"button text":        {[]slack.Block{button(long(76), "v", "a")}, "invalid_blocks", "/elements/0/text/text"},
		"button value":       {[]slack.Block{button("t", long(2001), "a")}, "invalid_blocks", "/elements/0/value"},
		"action id":          {[]slack.Block{button("t", "v", long(256))}, "invalid_blocks", "/elements/0/action_id"},
		"same block id":      {[]slack.Block{button("t", "v", "a"), button("t", "v", "c")}, "invalid_blocks", "already exists"},
		"same action id":     {[]slack.Block{slack.NewActionBlock("", slack.NewButtonBlockElement("a", "", plain("t")), slack.NewButtonBlockElement("a", "", plain("t")))}, "invalid_blocks", "already exists"},
		"confirm":            {[]slack.Block{confirm(long(300))}, "", ""},
		"long confirm":       {[]slack.Block{confirm(long(301))}, "invalid_blocks", "/confirm/text/text"},
		"total":              {[]slack.Block{section(long(3000)), section(long(3000)), section(long(3000)), section(long(3000)), section("x")}, "msg_blocks_too_long", ""},
		"preformatted":       {[]slack.Block{rich(code("- a\n+ b"))}, "", ""},
		"empty preformatted": {[]slack.Block{rich(code(""))}, "invalid_blocks", "/elements/0/elements/0/text"},
		"input in a message": {form().Blocks.BlockSet, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := c.PostMessage(room, slack.MsgOptionBlocks(tc.blocks...))
			if tc.want == "" {
				if err != nil {
					var e slack.SlackErrorResponse
					errors.As(err, &e)
					t.Fatalf("%v %q", err, e.ResponseMetadata.Messages)
				}
				return
			}
			e := wantError(t, err, tc.want)
			if !strings.Contains(strings.Join(e.ResponseMetadata.Messages, "\n"), tc.at) {
				t.Errorf("messages %q, want %q", e.ResponseMetadata.Messages, tc.at)
			}
		})
	}
	_, _, err := c.PostMessage(room, slack.MsgOptionText(long(40001), false))
	wantError(t, err, "msg_too_long")
}

func TestRendering(t *testing.T) {
	s, c := start(t)
	mrkdwn := slack.NewTextBlockObject(slack.MarkdownType, "by <@U01> &lt;b&gt; <https://a.example|b.example>", false, true)
	list := slack.NewRichTextList(slack.RTEListBullet, 0,
		slack.NewRichTextSection(slack.NewRichTextSectionTextElement("one", nil)),
		slack.NewRichTextSection(slack.NewRichTextSectionBroadcastElement("channel")))
	_, _, err := c.PostMessage(room, slack.MsgOptionBlocks(
		slack.NewHeaderBlock(plain("Scale web")),
		slack.NewSectionBlock(mrkdwn, nil, slack.NewAccessory(slack.NewButtonBlockElement("more", "", plain("Review")))),
		slack.NewRichTextBlock("", list, &slack.RichTextPreformatted{Type: slack.RTEPreformatted,
			Elements: []slack.RichTextSectionElement{slack.NewRichTextSectionTextElement("- 2\n+ <@U01>", nil)}}),
		slack.NewDividerBlock(),
		slack.NewContextBlock("", plain("prod"), plain("3 min")),
		buttons()))
	if err != nil {
		t.Fatal(err)
	}
	want := `# Scale web
by «@U01» <b> «b.example -> https://a.example»
[Review]
- one
- «@channel»
    - 2
    + <@U01>
---
prod | 3 min
[Approve] [Reject]
`
	if got := s.Messages(room)[0].Rendered(); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestTrouble(t *testing.T) {
	s, c := start(t)
	post := func(c *slack.Client) error {
		_, _, err := c.PostMessage(room, slack.MsgOptionText("x", false))
		return err
	}
	for name, tc := range map[string]struct {
		how   slacktest.Trouble
		check func(error) bool
	}{
		"status": {slacktest.Trouble{Status: 500}, func(err error) bool {
			var e slack.StatusCodeError
			return errors.As(err, &e) && e.Code == 500
		}},
		"api error": {slacktest.Trouble{Error: "fatal_error"}, func(err error) bool { return err.Error() == "fatal_error" }},
		"garbled":   {slacktest.Trouble{Garbled: true}, func(err error) bool { return err != nil }},
		"cut":       {slacktest.Trouble{Cut: true}, func(err error) bool { return errors.Is(err, io.EOF) }},
		"rate limited": {slacktest.Trouble{RetryAfter: 7}, func(err error) bool {
			var e *slack.RateLimitedError
			return errors.As(err, &e) && e.RetryAfter == 7*time.Second
		}},
		"hang": {slacktest.Trouble{Hang: true}, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
	} {
		for _, done := range []bool{false, true} {
			before := len(s.Messages(room))
			how := tc.how
			how.Done = done
			s.Fail("chat.postMessage", 1, how)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if name == "hang" {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
			}
			_, _, err := c.PostMessageContext(ctx, room, slack.MsgOptionText("x", false))
			cancel()
			if err == nil || !tc.check(err) {
				t.Errorf("%s: error %v", name, err)
			}
			if took := len(s.Messages(room)) > before; took != done {
				t.Errorf("%s: effect %v, want %v", name, took, done)
			}
			if err := post(c); err != nil {
				t.Errorf("%s: the trouble lasts: %v", name, err)
			}
		}
	}

	calls := len(s.Calls("chat.postMessage"))
	s.Fail("*", 1, slacktest.Trouble{RetryAfter: 1})
	cfg := slack.DefaultRetryConfig()
	cfg.RetryAfterJitter = 0
	began := time.Now()
	if err := post(client(s, slack.OptionRetryConfig(cfg))); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < time.Second || len(s.Calls("chat.postMessage")) != calls+2 {
		t.Errorf("took %v", took)
	}

	s.Down(true)
	if err := post(c); err == nil {
		t.Error("posted while down")
	}
	s.Down(false)
	if err := post(c); err != nil {
		t.Error(err)
	}
}

func TestSocketMode(t *testing.T) {
	s, c := start(t)
	var seen sync.Map
	run(t, s, func(i slack.InteractionCallback) any {
		seen.Store("last", i)
		if i.ActionCallback.BlockActions != nil && i.ActionCallback.BlockActions[0].ActionID == "reject" {
			if _, err := c.OpenView(i.TriggerID, form()); err != nil {
				t.Error(err)
			}
			if _, err := c.OpenView(i.TriggerID, form()); err == nil || err.Error() != "exchanged_trigger_id" {
				t.Error(err)
			}
		}
		if i.Type == slack.InteractionTypeViewSubmission && i.View.State.Values["reason"]["text"].Value == "no" {
			return slack.NewErrorsViewSubmissionResponse(map[string]string{"reason": "Say more."})
		}
		return nothing
	})
	_, ts, err := c.PostMessage(room, slack.MsgOptionBlocks(section("a change"), buttons()))
	if err != nil {
		t.Fatal(err)
	}

	d, err := s.Click(ana, room, ts, "approve")
	if err != nil || !d.Acked || d.Saw != "" {
		t.Fatalf("%+v %v", d, err)
	}
	v, _ := seen.Load("last")
	i := v.(slack.InteractionCallback)
	a := i.ActionCallback.BlockActions[0]
	if i.Team.ID != s.TeamID || i.APIAppID != s.AppID || i.User.ID != ana || i.Container.ChannelID != room || i.Container.MessageTs != ts ||
		i.Channel.ID != room || i.Message.Timestamp != ts || len(i.Message.Blocks.BlockSet) != 2 || a.BlockID != "decide" || a.Value != "op-1" || a.ActionTs == "" {
		t.Errorf("%+v", i)
	}

	if d, err := s.Click(ana, room, ts, "reject"); err != nil || !d.Acked {
		t.Fatalf("%+v %v", d, err)
	}
	form, ok := s.View(ana)
	if want := "== Reject ==\nSure?\nReason: [why]\n[Cancel] [Reject]\n"; !ok || form.Rendered() != want || form.PrivateMetadata != "op-1" {
		t.Fatalf("%q", form.Rendered())
	}
	if _, err := s.Submit(ana, form.ID, nil); err == nil {
		t.Error("an empty required field was sent")
	}
	d, err = s.Submit(ana, form.ID, map[string]string{"text": "no"})
	if err != nil || d.Saw != "reason: Say more." {
		t.Fatalf("%+v %v", d, err)
	}
	if form, _ := s.View(ana); !strings.Contains(form.Rendered(), "! Say more.\n") {
		t.Errorf("%q", form.Rendered())
	}
	d, err = s.Submit(ana, form.ID, map[string]string{"reason/text": "too many replicas"})
	if err != nil || d.Saw != "" {
		t.Fatalf("%+v %v", d, err)
	}
	if _, open := s.View(ana); open {
		t.Error("the modal stayed open")
	}

	// After the buttons have gone only a stale client can press them.
	if _, _, _, err := c.UpdateMessage(room, ts, slack.MsgOptionBlocks(section("approved"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Click(ana, room, ts, "approve"); err == nil || !strings.Contains(err.Error(), "approved") {
		t.Errorf("clicked what is not there: %v", err)
	}
	if d, err := s.Click(ana, room, ts, "approve", slacktest.Version(0), slacktest.FromTeam("T9"), slacktest.Twice()); err != nil || !d.Acked || !d.Repeat[0].Acked {
		t.Errorf("%+v %v", d, err)
	}
	v, _ = seen.Load("last")
	if i := v.(slack.InteractionCallback); i.Team.ID != "T9" {
		t.Errorf("team %s", i.Team.ID)
	}

	opened := func() int { return len(s.Calls("apps.connections.open")) }
	before := opened()
	s.Disconnect("refresh_requested")
	if !s.Await(30*time.Second, func() bool { return opened() > before && s.Connections() == 1 }) {
		t.Error("no new connection")
	}
}

func TestNotAcknowledged(t *testing.T) {
	s, c := start(t)
	_, ts, err := c.PostMessage(room, slack.MsgOptionBlocks(buttons()))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := s.Click(ana, room, ts, "approve"); err != nil || d.Acked || d.Saw == "" {
		t.Errorf("nobody was connected: %+v %v", d, err)
	}
	run(t, s, func(i slack.InteractionCallback) any {
		_, err := c.OpenView(i.TriggerID, form())
		if err == nil || err.Error() != "expired_trigger_id" {
			t.Errorf("error %v", err)
		}
		return nil
	})
	d, err := s.Click(ana, room, ts, "approve", slacktest.Delayed(3100*time.Millisecond))
	if err != nil || d.Acked || d.Took < 3*time.Second {
		t.Errorf("%+v %v", d, err)
	}
}

func TestSeveralConnections(t *testing.T) {
	s, c := start(t)
	var got [2]atomic.Int32
	for n := range got {
		run(t, s, func(slack.InteractionCallback) any { got[n].Add(1); return nothing })
	}
	_, ts, err := c.PostMessage(room, slack.MsgOptionBlocks(buttons()))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if d, err := s.Click(ana, room, ts, "approve"); err != nil || !d.Acked {
				t.Errorf("%+v %v", d, err)
			}
		})
	}
	wg.Wait()
	if got[0].Load() != 5 || got[1].Load() != 5 {
		t.Errorf("%d and %d", got[0].Load(), got[1].Load())
	}
}

func TestSignedHTTP(t *testing.T) {
	s, c := start(t)
	var mu sync.Mutex
	var refused []error
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		v, err := slack.NewSecretsVerifier(r.Header, s.SigningSecret)
		if err == nil {
			_, _ = v.Write(body)
			err = v.Ensure()
		}
		if err != nil {
			mu.Lock()
			refused = append(refused, err)
			mu.Unlock()
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		i, err := slack.InteractionCallbackParse(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if i.Type == slack.InteractionTypeViewSubmission {
			_ = json.NewEncoder(w).Encode(slack.NewClearViewSubmissionResponse())
			return
		}
		if _, err := c.OpenView(i.TriggerID, form()); err != nil && err.Error() != "exchanged_trigger_id" {
			t.Error(err)
		}
	}))
	defer app.Close()
	s.SetInteractions(app.URL)
	_, ts, err := c.PostMessage(room, slack.MsgOptionBlocks(buttons()))
	if err != nil {
		t.Fatal(err)
	}
	click := func(options ...slacktest.Option) *slacktest.Delivery {
		d, err := s.Click(ana, room, ts, "reject", options...)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := click(slacktest.Twice(), slacktest.Again()); !d.Acked || len(d.Repeat) != 2 || !d.Repeat[0].Acked || !d.Repeat[1].Acked {
		t.Errorf("%+v", d)
	}
	v, ok := s.View(ana)
	if !ok {
		t.Fatal("no modal")
	}
	if d, err := s.Submit(ana, v.ID, map[string]string{"text": "because"}); err != nil || !d.Acked {
		t.Errorf("%+v %v", d, err)
	}
	if _, open := s.View(ana); open {
		t.Error("the modal stayed open")
	}
	if d := click().Replay(); !d.Acked || d.Took == 0 {
		t.Errorf("%+v", d)
	}
	if d := click(slacktest.WrongSignature()); d.Acked || d.Status != http.StatusUnauthorized {
		t.Errorf("%+v", d)
	}
	if d := click(slacktest.Stale(10 * time.Minute)); d.Acked {
		t.Errorf("%+v", d)
	}
	if d := s.Deliver([]byte("{not json")); d.Acked || d.Status != http.StatusBadRequest {
		t.Errorf("%+v", d)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(refused) != 2 || !errors.Is(refused[0], slack.ErrInvalidSignature) || !errors.Is(refused[1], slack.ErrExpiredTimestamp) {
		t.Errorf("%v", refused)
	}
}

func TestViews(t *testing.T) {
	s, c := start(t)
	var trigger atomic.Value
	run(t, s, func(i slack.InteractionCallback) any { trigger.Store(i.TriggerID); return nothing })
	_, ts, err := c.PostMessage(room, slack.MsgOptionBlocks(buttons()))
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() string {
		t.Helper()
		if d, err := s.Click(ana, room, ts, "approve"); err != nil || !d.Acked {
			t.Fatalf("%+v %v", d, err)
		}
		return trigger.Load().(string)
	}
	opened, err := c.OpenView(fresh(), form())
	if err != nil {
		t.Fatal(err)
	}
	changed := form()
	changed.Title = plain("Changed")
	changed.Blocks.BlockSet = append(changed.Blocks.BlockSet, buttons())
	if _, err := c.UpdateView(changed, "", opened.Hash, opened.ID); err != nil {
		t.Fatal(err)
	}
	_, err = c.UpdateView(changed, "", opened.Hash, opened.ID)
	wantError(t, err, "hash_conflict")
	_, err = c.UpdateView(changed, "", "", "V9")
	wantError(t, err, "not_found")
	if d, err := s.ViewClick(ana, opened.ID, "approve"); err != nil || !d.Acked {
		t.Fatalf("%+v %v", d, err)
	}
	if _, err := c.PushView(trigger.Load().(string), form()); err != nil {
		t.Fatal(err)
	}
	v, _ := s.View(ana)
	if v.Title != "Reject" {
		t.Errorf("in front is %q", v.Title)
	}
	if _, err := s.Dismiss(ana, v.ID); err != nil {
		t.Fatal(err)
	}
	if v, _ := s.View(ana); v.Title != "Changed" {
		t.Errorf("beneath was %q", v.Title)
	}

	bad := form()
	bad.Title = plain(strings.Repeat("x", 25))
	bad.PrivateMetadata = strings.Repeat("x", 3001)
	_, err = c.OpenView(fresh(), bad)
	if e := wantError(t, err, "invalid_arguments"); len(e.ResponseMetadata.Messages) != 2 {
		t.Errorf("%q", e.ResponseMetadata.Messages)
	}
	_, err = c.OpenView("1.2.3", form())
	wantError(t, err, "invalid_trigger_id")
	expired := fresh()
	s.ExpireTriggers()
	_, err = c.OpenView(expired, form())
	wantError(t, err, "expired_trigger_id")
}

func TestControl(t *testing.T) {
	s, c := start(t)
	run(t, s, func(slack.InteractionCallback) any { return nothing })
	_, ts, err := c.PostMessage(room, slack.MsgOptionBlocks(buttons()))
	if err != nil {
		t.Fatal(err)
	}
	post := func(act, body string) (int, string) {
		t.Helper()
		r, err := http.Post(s.ControlURL+act, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		out, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(out)
	}
	if code, out := post("messages", `{"channel":"C01"}`); code != 200 || !strings.Contains(out, `[Approve] [Reject]`) {
		t.Errorf("%d %s", code, out)
	}
	if code, out := post("click", `{"user":"U01","channel":"C01","ts":"`+ts+`","action":"approve"}`); code != 200 || !strings.Contains(out, `"acked":true`) {
		t.Errorf("%d %s", code, out)
	}
	if code, _ := post("click", `{"user":"U01","channel":"C01","ts":"`+ts+`","action":"other"}`); code != 400 {
		t.Errorf("%d", code)
	}
}
