%% OTP's own supervisor lives through histories; one line of answers each.
%%
%% The file named on the command line holds terms {Number, Tree, Events}:
%%   Tree  = {sup, Id, Strategy, Intensity, AutoShutdown, Restart, Significant, [Tree]}
%%         | {kid, Id, Restart, Significant, Shutdown, StartsThatFail}
%%   Event = {normal | shutdown | crash | kill | terminate | restart | delete | start, Id}
%%
%% A line is: Number, the trace (+a started, -a stopped by its supervisor, ~x an answer to a
%% verb), the tree that is left, and the trace of its ordered shutdown.
-module(otp_histories).
-export([main/0, init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, start_kid/2]).

main() ->
    logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    ets:new(trace, [named_table, public, ordered_set]),
    ets:new(starts, [named_table, public]),
    [File] = init:get_plain_arguments(),
    {ok, Histories} = file:consult(File),
    [live(H) || H <- Histories],
    halt().

live({Number, Tree, Events}) ->
    ets:delete_all_objects(starts),
    case supervisor:start_link(?MODULE, Tree) of
        {error, _} ->
            io:format("~b |~s unstarted |~n", [Number, drain()]);
        {ok, Sup} ->
            [happen(Sup, Tree, E) || E <- Events],
            Left = picture(Sup),
            During = drain(),
            stop(Sup),
            io:format("~b |~s ~s |~s~n", [Number, During, Left, drain()])
    end,
    receive {'EXIT', _, _} -> ok after 0 -> ok end.

stop(Sup) ->
    unlink(Sup),
    Monitor = monitor(process, Sup),
    exit(Sup, shutdown),
    receive {'DOWN', Monitor, _, _, _} -> ok end.

%% ---- events

happen(Sup, Tree, {Deed, Id}) ->
    case lists:member(Deed, [normal, shutdown, crash, kill]) of
        true ->
            case find(Sup, Id) of
                {_, Pid} when is_pid(Pid) -> harm(Pid, Deed), settle(Sup, Pid);
                _ -> ok
            end;
        false ->
            case owner(Sup, Tree, Id) of
                none -> ok;
                Owner ->
                    note($~, answer(catch verb(Deed, Owner, Id, spec_of(Tree, Id)))),
                    settle(Sup, none)
            end
    end.

harm(Pid, normal) -> gen_server:cast(Pid, {stop, normal});
harm(Pid, shutdown) -> gen_server:cast(Pid, {stop, {shutdown, itself}});
harm(Pid, crash) -> gen_server:cast(Pid, crash);
harm(Pid, kill) -> exit(Pid, kill).

verb(terminate, Sup, Id, _) -> supervisor:terminate_child(Sup, Id);
verb(restart, Sup, Id, _) -> supervisor:restart_child(Sup, Id);
verb(delete, Sup, Id, _) -> supervisor:delete_child(Sup, Id);
verb(start, Sup, _, Spec) -> supervisor:start_child(Sup, Spec).

answer(ok) -> ok;
answer({ok, _}) -> ok;
answer({error, running}) -> running;
answer({error, restarting}) -> restarting;
answer({error, not_found}) -> not_found;
answer({error, already_present}) -> already_present;
answer({error, {already_started, _}}) -> already_started;
answer({error, _}) -> failed;
answer({'EXIT', _}) -> died.

%% Wait until the fallen process is seen by nobody and no child is on its way back.
settle(Sup, Fallen) ->
    case is_process_alive(Sup) andalso calm(Sup, Fallen) of
        true -> ok;
        false ->
            case is_process_alive(Sup) of
                true -> erlang:yield(), settle(Sup, Fallen);
                false -> ok
            end
    end.

calm(Sup, Fallen) ->
    case catch supervisor:which_children(Sup) of
        Children when is_list(Children) -> lists:all(fun(C) -> calm_child(C, Fallen) end, Children);
        _ -> false
    end.

calm_child({_, restarting, _, _}, _) -> false;
calm_child({_, Fallen, _, _}, Fallen) -> false;
calm_child({_, Pid, supervisor, _}, Fallen) when is_pid(Pid) -> calm(Pid, Fallen);
calm_child(_, _) -> true.

%% ---- looking

find(Sup, Id) ->
    case is_process_alive(Sup) of
        true -> find_in(supervisor:which_children(Sup), Sup, Id);
        false -> none
    end.

find_in([], _, _) -> none;
find_in([{Id, Pid, _, _} | _], Sup, Id) -> {Sup, Pid};
find_in([{_, Pid, supervisor, _} | More], Sup, Id) when is_pid(Pid) ->
    case find(Pid, Id) of
        none -> find_in(More, Sup, Id);
        Found -> Found
    end;
find_in([_ | More], Sup, Id) -> find_in(More, Sup, Id).

%% The process that now is the supervisor under which Id was drawn.
owner(Sup, Tree, Id) ->
    case {is_process_alive(Sup), owner_id(Tree, Id)} of
        {false, _} -> none;
        {true, root} -> Sup;
        {true, OwnerId} ->
            case find(Sup, OwnerId) of
                {_, Pid} when is_pid(Pid) -> Pid;
                _ -> none
            end
    end.

owner_id({sup, Own, _, _, _, _, _, Children}, Id) ->
    case [C || C <- Children, element(2, C) =:= Id] of
        [_] -> Own;
        [] -> hd([O || C <- Children, element(1, C) =:= sup, O <- [owner_id(C, Id)], O =/= none] ++ [none])
    end.

spec_of({sup, _, _, _, _, _, _, Children}, Id) ->
    case [C || C <- Children, element(2, C) =:= Id] of
        [Child] -> spec(Child);
        [] -> hd([S || C <- Children, element(1, C) =:= sup, S <- [spec_of(C, Id)], S =/= none] ++ [none])
    end.

picture(Sup) ->
    case is_process_alive(Sup) of
        true ->
            Children = lists:reverse(supervisor:which_children(Sup)),
            ["(", lists:join(",", [picture_of(C) || C <- Children]), ")"];
        false -> "dead"
    end.

picture_of({Id, Pid, supervisor, _}) when is_pid(Pid) -> [atom_to_list(Id), picture(Pid)];
picture_of({Id, Pid, _, _}) when is_pid(Pid) -> atom_to_list(Id);
picture_of({Id, _, _, _}) -> [atom_to_list(Id), "?"].

note(Sign, What) ->
    ets:insert(trace, {erlang:unique_integer([monotonic]), [Sign, atom_to_list(What)]}).

drain() ->
    Noted = [Text || {_, Text} <- ets:tab2list(trace)],
    ets:delete_all_objects(trace),
    Noted.

%% ---- the supervisors and their children

spec({kid, Id, Restart, Significant, Shutdown, Fails}) ->
    #{id => Id, start => {?MODULE, start_kid, [Id, Fails]}, restart => Restart,
      significant => Significant, shutdown => Shutdown};
spec({sup, Id, _, _, _, Restart, Significant, _} = Tree) ->
    #{id => Id, start => {supervisor, start_link, [?MODULE, Tree]}, restart => Restart,
      significant => Significant, shutdown => infinity, type => supervisor}.

start_kid(Id, Fails) -> gen_server:start_link(?MODULE, {start, Id, Fails}, []).

init({sup, _, Strategy, Intensity, Auto, _, _, Children}) ->
    {ok, {#{strategy => Strategy, intensity => Intensity, period => 3600, auto_shutdown => Auto},
          [spec(C) || C <- Children]}};
init({start, Id, Fails}) ->
    process_flag(trap_exit, true),
    note($+, Id),
    Count = ets:update_counter(starts, Id, 1, {Id, 0}),
    case lists:member(Count, Fails) of
        true -> {stop, failed};
        false -> {ok, Id}
    end.

handle_call(_, _, Id) -> {reply, ok, Id}.

handle_cast(crash, _) -> erlang:error(boom);
handle_cast({stop, Reason}, Id) -> {stop, Reason, Id}.

handle_info(_, Id) -> {noreply, Id}.

%% Only a stop asked for by the supervisor is noted: it alone is exactly `shutdown`.
terminate(shutdown, Id) -> note($-, Id);
terminate(_, _) -> ok.
